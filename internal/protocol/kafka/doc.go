// Package kafka serves the Kafka protocol on top of shard.Client. It holds no state but its connections and a cache of
// topics, which are never deleted: the log, the groups and the producers live in package eventlog.
//
// Each API is one file named as Kafka names it, and one line of the table in api.go. A connection has two goroutines: one
// reads requests, and hands produced batches to the shard at once so that pipelined requests share a commit; one answers
// in order. A request that waits (Fetch, JoinGroup, SyncGroup) holds up its own connection only, as in Kafka.
//
// Memory is bounded: a frame is read as it arrives and not as large as it claims to be, its array counts are checked
// against its size before anything is decoded, frames and fetched records are taken from budgets that all
// connections share, and a connection has a fixed number of requests in flight.
package kafka
