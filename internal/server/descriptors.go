package server

import "syscall"

// A node without file descriptors cannot make the next file of its raft log, and stops. So that clients cannot do that to it, however many come, their
// connections and the store's tables share what the process may have, and some are left for the rest. With 32 Ki and more the bounds are what they would be
// without a limit.

// descriptors is how many files and connections the process may have open, 0 if that is unknown.
type descriptors int

// ownDescriptors returns the limit of the process. The Go runtime has raised it to what this user may set.
func ownDescriptors() descriptors {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > descriptorsMax {
		return 0
	}
	return descriptors(l.Cur)
}

const (
	// descriptorsMax is more than a node with all its clients needs.
	descriptorsMax = 32 << 10
	// descriptorsFew is from where on a node says at its start that it has few.
	descriptorsFew = 1024
	// descriptorsApart are for segments of the raft log, files that are being written, listeners, links to peers, and callers of the peer port.
	descriptorsApart = 160
	// tablesMin is the least that Pebble goes by, tablesMax is enough for all it has.
	tablesMin, tablesMax = 74, 1000
)

// tables returns how many files of the state store may be open to be read.
func (d descriptors) tables() int {
	if d == 0 {
		return tablesMax
	}
	return max(min(int(d)/4, tablesMax), tablesMin)
}

// operators returns how many connections the HTTP port may have. They have theirs apart, so that somebody can look while clients have all of the others.
func (d descriptors) operators() int {
	if d == 0 {
		return httpConnectionsMax
	}
	return max(min(int(d)/16, httpConnectionsMax), 2)
}

// clients returns how many connections Redis', Kafka's and etcd's clients may have together. Where it is tight they get an eighth of all, and the node
// may be short of them.
func (d descriptors) clients() int {
	if d == 0 {
		return descriptorsMax
	}
	return max(int(d)-descriptorsApart-d.tables()-d.operators(), int(d)/8)
}
