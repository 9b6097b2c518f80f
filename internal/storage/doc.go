// Package storage owns the disk of a node: the raft log, shared by all shards of the node (Log), and the ordered store
// that holds every shard's state (Store). No other package opens files below the data directory, and only this one
// imports Pebble.
//
// The two together make one durable whole. Log is the redo log: an append is durable once Sync returned. Store has no
// write-ahead log of its own; after a crash it comes back as it was at some moment not before its last Flush, and the
// replica applies the log from the applied index found in it. So the log may be cut only behind what Flush covered.
//
// Neither type starts goroutines that callers can observe, and both do all I/O through an FS, so that the simulation
// drives the same code on an in-memory disk that can crash, stall and rot. Formats: docs/formats.
package storage

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the file system that storage works on: the operating system's, or one in memory.
type FS = vfs.FS

// OSFS returns the operating system's file system. On Linux, segments of a raft log are written past its page cache.
func OSFS() FS { return direct(vfs.Default) }

// MemFS returns an empty in-memory file system whose CrashClone forgets what was not synced.
func MemFS() *vfs.MemFS { return vfs.NewCrashableMem() }

// VolatileFS returns an empty file system in memory, for nodes whose data may be lost.
func VolatileFS() FS { return vfs.NewMem() }

// ShardID numbers a shard within a cluster, from 1. Ids are never reused. Zero is no shard.
type ShardID uint32
