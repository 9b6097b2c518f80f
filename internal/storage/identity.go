package storage

// ID returns the name of this log: a random number that was stored when it was made. A node that comes back with another
// one has lost its disk.
func (l *Log) ID() uint64 { return l.id }

// appendAllBytes is the size of entries from which AppendAll begins another batch. Many shards with large entries, or one
// shard with many of them, would otherwise make one that is over the limit of a record.
const appendAllBytes = 16 << 20

// AppendAll appends writes among which a shard may occur more than once, as those of several turns do. They are split into
// as few batches as that and a bound of their size allow; each is atomic by itself. Of a write that is larger than the bound
// a crash may therefore leave a part: the first of its entries, and no commit index beyond them.
func (l *Log) AppendAll(ws []Write) error {
	seen := make(map[ShardID]struct{}, len(ws))
	batch, size := make([]Write, 0, len(ws)), 0
	for _, w := range ws {
		for more := true; more; {
			var part Write
			var bytes int
			part, w, bytes, more = splitWrite(w)
			if _, twice := seen[part.Shard]; twice || size > 0 && size+bytes > appendAllBytes {
				if err := l.Append(batch); err != nil {
					return err
				}
				batch, size = batch[:0], 0
				clear(seen)
			}
			batch = append(batch, part)
			seen[part.Shard] = struct{}{}
			size += bytes
		}
	}
	return l.Append(batch)
}

// splitWrite takes off a write as many entries as are within the bound, at least one, with what comes before entries. more
// says that something is left. bytes is the size of the part.
//
// Each part has the hard state, since no entry may be on disk without its term; but its commit index ends with the part, for
// what is committed must be there.
func splitWrite(w Write) (part, rest Write, bytes int, more bool) {
	n := 0
	for n < len(w.Entries) {
		k := len(w.Entries[n].Data)
		if n > 0 && bytes+k > appendAllBytes {
			break
		}
		bytes += k
		n++
	}
	if n == len(w.Entries) {
		return w, Write{}, bytes, false
	}
	part = Write{Shard: w.Shard, Replica: w.Replica, Reset: w.Reset, Entries: w.Entries[:n], State: w.State}
	part.State.Commit = min(w.State.Commit, w.Entries[n-1].Index)
	rest = Write{Shard: w.Shard, Entries: w.Entries[n:], State: w.State, Cut: w.Cut, Remove: w.Remove}
	return part, rest, bytes, true
}
