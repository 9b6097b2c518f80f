package storage

// ID returns the name of this log: a random number that was stored when it was made. A node that comes back with another
// one has lost its disk.
func (l *Log) ID() uint64 { return l.id }

// AppendAll appends writes among which a shard may occur more than once, as those of several turns do. They are split into
// as few batches as that allows; each is atomic by itself.
func (l *Log) AppendAll(ws []Write) error {
	seen := make(map[ShardID]struct{}, len(ws))
	from := 0
	for i, w := range ws {
		if _, twice := seen[w.Shard]; twice {
			if err := l.Append(ws[from:i]); err != nil {
				return err
			}
			from = i
			clear(seen)
		}
		seen[w.Shard] = struct{}{}
	}
	return l.Append(ws[from:])
}
