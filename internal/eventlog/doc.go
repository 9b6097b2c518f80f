// Package eventlog is the data model behind Quorate's Kafka face: topics, partitions, idempotent producers and consumer
// groups, as one shard.Module. Everything runs inside the state machine: an append, a rebalance and an offset commit are
// each one log entry, so that a change of leader loses nothing and no consumer has to rejoin after it.
//
// # Where things live
//
// Topics are created on the first shard of their space. Partition p lives on the space's PartitionShard(p); its rows come
// into being with its first append, so that creating a topic touches one shard. A topic with a retention or a lock is also copied,
// before its first append, to the shards that hold its partitions (PlaceTopic), because retention runs there. A consumer
// group lives whole on one shard, chosen by a hash of its name.
//
// # Rows
//
// All integers in keys are big endian, so that they sort.
//
//	'N' name                        topic id
//	't' id                          topic
//	'T'                             counters of topics and partitions
//	'p' id partition                partition state: log start, next offset, bytes, leader epoch, time index, retention
//	'b' id partition lastOffset     a record batch, as it is fetched
//	'i' id partition maxTime last   time index: one row for a stretch of batches
//	'e' id partition epoch          first offset of a leader epoch that has ended
//	'q' id partition producer       an idempotent producer's epoch and its last batches
//	'P'                             next producer id
//	'g' group                       a group's state, generation, protocol and counters
//	'm' group member                a member with its subscription and assignment
//	'n' group member                a member id that was handed out and not used yet (KIP-394)
//	's' group instance              the member id of a static member (KIP-345)
//	'o' group topic partition       a committed offset
//	'G'                             the number of groups
//
// Batches are keyed by their last offset: the batch that holds an offset is then the first at or after it, one seek away.
package eventlog
