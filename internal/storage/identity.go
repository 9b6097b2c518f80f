package storage

// ID returns the name of this log: a random number that was stored when it was made. A node that comes back with another
// one has lost its disk.
func (l *Log) ID() uint64 { return l.id }

// appendAllBytes is the size of entries from which AppendAll begins another batch. Many shards with large entries would
// otherwise make one that is over the limit of a record.
const appendAllBytes = 16 << 20

// AppendAll appends writes among which a shard may occur more than once, as those of several turns do. They are split into
// as few batches as that and a bound of their size allow; each is atomic by itself.
func (l *Log) AppendAll(ws []Write) error {
	seen := make(map[ShardID]struct{}, len(ws))
	from, size := 0, 0
	for i, w := range ws {
		more := 0
		for j := range w.Entries {
			more += len(w.Entries[j].Data)
		}
		if _, twice := seen[w.Shard]; twice || size > 0 && size+more > appendAllBytes {
			if err := l.Append(ws[from:i]); err != nil {
				return err
			}
			from, size = i, 0
			clear(seen)
		}
		seen[w.Shard] = struct{}{}
		size += more
	}
	return l.Append(ws[from:])
}
