package storage

import (
	"hash/crc32"

	"github.com/quorate/quorate/internal/errs"
)

// A replica that has no raft configuration on disk yet begins with the members that its node is told, and one that has goes on with those. So nodes that are told others than
// at first may count to different majorities, each of which elects a leader. MEMBERS keeps what the node was told; it stands beside OWNER, whose format has no room for it, and releases that
// do not know it leave it alone. Format: docs/formats/owner.md.
const (
	membersName    = "MEMBERS"
	membersMagic   = "QRMEMBR1"
	membersVersion = 1
	membersFixed   = 8 + 4
)

func encodeMembers(members string) []byte {
	b := append(le.AppendUint32([]byte(membersMagic), membersVersion), members...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeMembers(b []byte) (string, error) {
	if len(b) < membersFixed+4 || string(b[:8]) != membersMagic || !checksumGood(b, len(b)-4) {
		return "", ErrOwnerDamaged
	}
	if v := le.Uint32(b[8:]); v != membersVersion {
		return "", errs.New(errs.Unsupported, "it has format version %d, this build reads %d", v, membersVersion)
	}
	return string(b[membersFixed : len(b)-4]), nil
}

// claimMembers checks that the directory was made for the same members. One that does not say for which takes these.
func (d *Dir) claimMembers(members string) error {
	if members == "" {
		return nil
	}
	name := d.fs.PathJoin(d.path, membersName)
	var was string
	found, err := d.recall(name, "which members the cluster has", "peers in the configuration has the nodes that it had", func(b []byte) (err error) {
		was, err = decodeMembers(b)
		return err
	})
	switch {
	case err != nil:
		return err
	case !found:
		return d.writeOnce(name, encodeMembers(members))
	case was != members:
		return errs.New(errs.Invalid, "data directory %s is of a cluster of the nodes %s, and the configuration says %s; correct peers: which nodes a cluster has is fixed when it is made",
			d.path, was, members)
	}
	return nil
}
