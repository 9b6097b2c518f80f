package storage

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"strings"

	"github.com/quorate/quorate/internal/errs"
)

// Owner says whose a data directory is. The raft log and the state store name shards and replicas by numbers only: read under another node number they vote twice, and under another number of shards keys are looked for where they
// are not. So the directory itself says what it was made for. Format: docs/formats/owner.md.
type Owner struct {
	// Cluster is the cluster's name, at most 64 KiB.
	Cluster string
	// Node is the node's number, Shards the number of shards of the cluster.
	Node, Shards uint32
	// Members are the numbers of the cluster's nodes, in ascending order, with commas between. Empty is not compared.
	Members string
}

const (
	ownerName    = "OWNER"
	ownerMagic   = "QROWNER1"
	ownerVersion = 1
	ownerFixed   = 8 + 4 + 4 + 4 + 2
)

// ErrOwnerDamaged is in the chain of the error about a damaged OWNER file. Opening the directory again does not help, as it
// does with other damage: the file is what would say whether it may be opened.
var ErrOwnerDamaged = errors.New("the file fails its checksum or its format")

func (o Owner) encode() []byte {
	b := le.AppendUint32([]byte(ownerMagic), ownerVersion)
	b = le.AppendUint32(b, o.Node)
	b = le.AppendUint32(b, o.Shards)
	b = append(le.AppendUint16(b, uint16(len(o.Cluster))), o.Cluster...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeOwner(b []byte) (Owner, error) {
	if len(b) < ownerFixed+4 || string(b[:8]) != ownerMagic || !checksumGood(b, len(b)-4) {
		return Owner{}, ErrOwnerDamaged
	}
	if v := le.Uint32(b[8:]); v != ownerVersion {
		return Owner{}, errs.New(errs.Unsupported, "it has format version %d, this build reads %d", v, ownerVersion)
	}
	o := Owner{Node: le.Uint32(b[12:]), Shards: le.Uint32(b[16:]), Cluster: string(b[ownerFixed : len(b)-4])}
	if int(le.Uint16(b[20:])) != len(o.Cluster) {
		return Owner{}, ErrOwnerDamaged
	}
	return o, nil
}

// snapshotPrefix begins the names of snapshots for etcd's clients, which package etcd has in the data directory while they are sent.
const snapshotPrefix = "quorate-snapshot-"

// refuseForeign refuses a directory that does not say whose it is and has files of others: most likely it was named by mistake. What file systems
// make by themselves is nobody's: lost+found, and names with a dot in front, such as .snapshot.
func refuseForeign(at FS, path string) error {
	names, err := at.List(path)
	if err != nil || slices.Contains(names, ownerName) {
		return nil //nolint:nilerr // what cannot be listed may be usable all the same
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case slices.Contains([]string{"LOCK", ownerName + ".tmp", membersName, membersName + ".tmp", damageMark, "log", "state", "lost+found"}, name):
		case strings.HasPrefix(name, snapshotPrefix), strings.HasPrefix(name, "."):
		default:
			return errs.New(errs.Invalid, "data directory %s is none of Quorate's, and has files of others, such as %s; nothing was changed; give the node a directory of its own, which it makes if there is none", path, name)
		}
	}
	return nil
}

// claim checks that the directory is the owner's. One that does not say whose it is becomes the owner's.
func (d *Dir) claim(o Owner) error {
	name := d.fs.PathJoin(d.path, ownerName)
	var was Owner
	found, err := d.recall(name, "whose data directory this is", "cluster, node, shards and spaces in the configuration are what they were", func(b []byte) (err error) {
		was, err = decodeOwner(b)
		return err
	})
	if err != nil {
		return err
	}
	if !found {
		return d.writeOwner(name, o)
	}
	if was.Members = o.Members; was == o {
		return nil
	}
	todo := "give each node a directory of its own, or correct cluster, node and spaces in the configuration"
	if was.Cluster == o.Cluster && was.Node == o.Node {
		todo = fmt.Sprintf("set shards back to %d, or give the node an empty directory if its cluster has %d: the number is fixed when a cluster is made", was.Shards, o.Shards)
	}
	return errs.New(errs.Invalid, "data directory %s belongs to %s, and the configuration says %s; %s", d.path, was, o, todo)
}

// recall reads a small file that says something of the directory, and reports whether there is one. Whoever makes sure of something may remove a
// damaged one; decode fails with ErrOwnerDamaged for it, and with another error for one of a later release.
func (d *Dir) recall(name, says, sure string, decode func([]byte) error) (found bool, err error) {
	b, err := readFile(d.fs, name, nil, func(int64, int64, error) {})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, errs.Wrap(errs.Invalid, err, "read %s, which says %s", name, says)
	}
	err = decode(b)
	switch {
	case errors.Is(err, ErrOwnerDamaged):
		return false, errs.Wrap(errs.Corrupt, err, "%s, which says %s, is damaged; make sure that %s, remove the file and start again", name, says, sure)
	case err != nil:
		return false, errs.Wrap(errs.Unsupported, err, "read %s; use the release that wrote it or a later one", name)
	}
	return true, nil
}

// String names the owner in messages.
func (o Owner) String() string {
	plural := "s"
	if o.Shards == 1 {
		plural = ""
	}
	return fmt.Sprintf("node %d of cluster %q with %d shard%s", o.Node, o.Cluster, o.Shards, plural)
}

func (d *Dir) writeOwner(name string, o Owner) error {
	if len(o.Cluster) > 1<<16-1 {
		return errs.New(errs.Invalid, "the names of the cluster and its spaces have %d bytes together; at most 65,535 are allowed", len(o.Cluster))
	}
	return d.writeOnce(name, o.encode())
}

// writeOnce makes a small file that is there whole, or not at all.
func (d *Dir) writeOnce(name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := d.fs.Create(tmp, category)
	if err == nil {
		if _, err = f.Write(b); err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = d.fs.Rename(tmp, name)
	}
	if err == nil {
		err = syncDir(d.fs, d.path)
	}
	return errs.Wrap(errs.Invalid, err, "write %s", name)
}
