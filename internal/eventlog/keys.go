package eventlog

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/shard"
)

// The first bytes of rows and of timer keys: see the package comment.
const (
	rowName      = 'N'
	rowTopic     = 't'
	rowTopics    = 'T'
	rowPartition = 'p'
	rowBatch     = 'b'
	rowTime      = 'i'
	rowEpoch     = 'e'
	rowProducer  = 'q'
	rowNextPID   = 'P'
	rowGroup     = 'g'
	rowMember    = 'm'
	rowPending   = 'n'
	rowInstance  = 's'
	rowOffset    = 'o'
	rowGroups    = 'G'

	// Timers use the key of the row they are about where there is one.
	timerRetention = 'r'
	timerIdle      = 'x'
)

const partitionKeySize = 1 + 16 + 4

func partKey(kind byte, topic [16]byte, partition int32) []byte {
	b := append(make([]byte, 0, partitionKeySize+16), kind)
	b = append(b, topic[:]...)
	return binary.BigEndian.AppendUint32(b, uint32(partition))
}

// partEnd is the end of all rows of one kind of a partition.
func partEnd(kind byte, topic [16]byte, partition int32) []byte {
	return partKey(kind, topic, partition+1)
}

func batchKey(topic [16]byte, partition int32, last int64) []byte {
	return binary.BigEndian.AppendUint64(partKey(rowBatch, topic, partition), uint64(last))
}

// sortable turns a signed number into one whose big-endian bytes sort like it.
func sortable(v int64) uint64 { return uint64(v) ^ 1<<63 }

func timeKey(topic [16]byte, partition int32, maxTime, last int64) []byte {
	b := binary.BigEndian.AppendUint64(partKey(rowTime, topic, partition), sortable(maxTime))
	return binary.BigEndian.AppendUint64(b, uint64(last))
}

func epochKey(topic [16]byte, partition int32, epoch int32) []byte {
	return binary.BigEndian.AppendUint32(partKey(rowEpoch, topic, partition), uint32(epoch))
}

func producerKey(topic [16]byte, partition int32, producer int64) []byte {
	return binary.BigEndian.AppendUint64(partKey(rowProducer, topic, partition), uint64(producer))
}

func nameKey(name string) []byte { return append([]byte{rowName}, name...) }

func topicKey(id [16]byte) []byte { return append([]byte{rowTopic}, id[:]...) }

// groupKey is the key of a group's own row, or the start of the keys of its parts.
func groupKey(kind byte, group string) []byte {
	b := append(make([]byte, 0, 3+len(group)+32), kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(group))), group...)
}

func groupPart(kind byte, group, part string) []byte { return append(groupKey(kind, group), part...) }

// after is the end of the range of keys that start with prefix. No prefix ends with 0xff bytes only.
func after(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

func offsetKey(group, topic string, partition int32) []byte {
	b := binary.BigEndian.AppendUint16(groupKey(rowOffset, group), uint16(len(topic)))
	b = append(b, topic...)
	return binary.BigEndian.AppendUint32(b, uint32(partition))
}

// splitGroupKey takes the group and the rest out of a key made by groupPart.
func splitGroupKey(key []byte) (group, rest string) {
	if len(key) < 3 {
		return "", ""
	}
	n := int(binary.BigEndian.Uint16(key[1:]))
	if len(key) < 3+n {
		return "", ""
	}
	return string(key[3 : 3+n]), string(key[3+n:])
}

func splitPartKey(key []byte) (topic [16]byte, partition int32, rest []byte) {
	if len(key) < partitionKeySize {
		return topic, -1, nil
	}
	copy(topic[:], key[1:])
	return topic, int32(binary.BigEndian.Uint32(key[17:])), key[partitionKeySize:]
}

// PartitionSpan is what to watch to learn of appends to a partition.
func PartitionSpan(topic [16]byte, partition int32) shard.Span {
	return shard.Span{Module: shard.ModuleEventlog, From: partKey(rowPartition, topic, partition)}
}

// AllPartitionsSpan is what to watch to learn of appends to any partition of a shard.
func AllPartitionsSpan() shard.Span {
	return shard.Span{Module: shard.ModuleEventlog, From: []byte{rowPartition}, To: []byte{rowPartition + 1}}
}

// GroupSpan is what to watch to learn of a group's next state.
func GroupSpan(group string) shard.Span {
	return shard.Span{Module: shard.ModuleEventlog, From: groupKey(rowGroup, group)}
}

// ChangesSpan is what to watch to learn of new entries in a shard's change log: every key of the key-value data types.
// Watch spans have an end, so it is chosen beyond any key that is shorter than 64 bytes of 0xff.
func ChangesSpan() shard.Span {
	end := make([]byte, 64)
	for i := range end {
		end[i] = 0xff
	}
	return shard.Span{Module: shard.ModuleDatatypes, From: []byte{}, To: end}
}
