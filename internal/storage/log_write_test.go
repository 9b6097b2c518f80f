package storage

import (
	"math/rand/v2"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

// A record is refused for its size before it is encoded: what is too long to be read again would be lost with all that is behind it.
func TestLog_SizeIsKnownBefore(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, LogConfig{ID: 7})
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 300 {
		ws := m.randomWrites(rng, 9)
		size, n, err := l.check(ws)
		must(t, err)
		at := l.pos
		must(t, l.Append(ws))
		m.apply(ws)
		if n == 0 {
			continue
		}
		rec, ok := recordAt(fileOf(t, fs, segmentName(l.current().seq)), int(at), l.current().seed, true)
		got := 0
		must(t, decodeBatch(rec.payload, rec.off, 1, func(*subRecord, []slot, []uint64) { got++ }))
		if !ok || uint64(len(rec.payload)) != size || got != n {
			t.Fatalf("batch %d: %d bytes and %d writes were expected, and %d bytes with %d written", i, size, n, len(rec.payload), got)
		}
	}
	must(t, l.Close())
}

// The longest record that is taken can be read again.
func TestLog_LongestRecord(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	data := make([]byte, payloadBytesMax-4-subRecordBytes(subReplica|subEntries)-entryHeaderBytes+1)
	wantKind(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: []Entry{{Index: 1, Term: 1, Data: data}}}}), errs.TooLarge)
	if got := l.Shards(); len(got) > 0 {
		t.Errorf("there are shards %v", got)
	}
	ws := []Write{{Shard: 1, Replica: 1, Entries: []Entry{{Index: 1, Term: 1, Data: data[1:]}}}}
	must(t, l.Append(ws))
	must(t, l.Close())
	m := model{}
	m.apply(ws)
	l = mustOpen(t, fs, smallLog())
	must(t, m.differs(l))
	must(t, l.Close())
}

// What is taken can be read again at the highest indexes, too, and with whatever else stands in the same write.
func TestLog_WhatOneWriteHolds(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, smallLog())
	for _, w := range []Write{
		{Shard: 1, Replica: 1, Reset: &Position{indexMax + 1, 1}},
		{Shard: 1, Replica: 1, Reset: &Position{indexMax, 1}, Entries: entries(indexMax+1, 1, 1, 8)},
		{Shard: 1, Replica: 1, Reset: &Position{indexMax - 3, 1}, Entries: entries(indexMax-2, 3, 1, 8)},
	} {
		wantKind(t, l.Append([]Write{w}), errs.Invalid)
	}
	for _, w := range []Write{
		{Shard: 1, Replica: 1, Reset: &Position{indexMax, 1}},
		{Shard: 2, Replica: 1, Reset: &Position{indexMax - 3, 1}, Entries: entries(indexMax-2, 2, 1, 8)},
		{Shard: 2, Cut: indexMax - 2},
		{Shard: 3, Replica: 1, Entries: entries(1, 20, 1, 8), Cut: 7},
		{Shard: 3, Reset: &Position{25, 2}, Cut: 25},
		{Shard: 3, Reset: &Position{30, 3}, Cut: 12},
		{Shard: 3, Reset: &Position{40, 3}, Entries: entries(41, 4, 4, 8), Cut: 42},
		{Shard: 3, Entries: entries(44, 3, 5, 8), Cut: 43},
		{Shard: 3, Replica: 2, Entries: entries(1, 5, 1, 8), Cut: 3, State: HardState{Term: 1, Vote: 2, Commit: 3}},
		{Shard: 4, Replica: 1, Cut: 0},
		{Shard: 4, Remove: true, Entries: entries(9, 1, 1, 8)},
	} {
		must(t, l.Append([]Write{w}))
		m.apply([]Write{w})
		must(t, m.differs(l))
		must(t, l.Close())
		l = mustOpen(t, fs, smallLog())
		if err := m.differs(l); err != nil {
			t.Fatalf("after %+v: %v", w, err)
		}
	}
	must(t, l.Close())
}
