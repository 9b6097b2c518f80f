package storage

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// of returns the owner with these members.
func (o Owner) of(members string) Owner {
	o.Members = members
	return o
}

func TestOpenDir_RefusesOtherMembers(t *testing.T) {
	fs := MemFS()
	must(t, openFor(fs, "data", shop.of("1, 2, 3")))
	for _, members := range []string{"1, 2, 3, 4, 5", "2", "1, 2, 4"} {
		err := openFor(fs, "data", shop.of(members))
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "nodes 1, 2, 3, and the configuration says "+members+";") {
			t.Errorf("%s: got %v", members, err)
		}
	}
	must(t, openFor(fs, "data", shop.of("1, 2, 3")))
	if err := openFor(fs.CrashClone(vfs.CrashCloneCfg{}), "data", shop.of("1, 2")); !errs.Is(err, errs.Invalid) {
		t.Errorf("after a crash: %v", err)
	}
}

// What an earlier release made does not say which members there are.
func TestOpenDir_WithoutMembersIsClaimed(t *testing.T) {
	fs := MemFS()
	must(t, openFor(fs, "data", shop))
	must(t, openFor(fs, "data", shop.of("1, 2, 3")))
	if err := openFor(fs, "data", shop.of("1")); !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	// Without OWNER, as after damage to it, MEMBERS is no file of others.
	must(t, fs.Remove("data/"+ownerName))
	must(t, openFor(fs, "data", shop.of("1, 2, 3")))
}

func TestMembers_FormatAndDamage(t *testing.T) {
	good := encodeMembers("1, 2, 3")
	if want := "QRMEMBR1\x01\x00\x00\x001, 2, 3x\x90\xea\x01"; string(good) != want {
		t.Errorf("got %q, want %q", good, want)
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 4
		if _, err := decodeMembers(b); !errors.Is(err, ErrOwnerDamaged) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := decodeMembers(good[:i]); !errors.Is(err, ErrOwnerDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	other := append([]byte("QROTHER1"), good[8:len(good)-4]...)
	if _, err := decodeMembers(le.AppendUint32(other, crcOf(other))); !errors.Is(err, ErrOwnerDamaged) {
		t.Errorf("another file: %v", err)
	}
	fs := MemFS()
	must(t, openFor(fs, "data", shop.of("1")))
	later := bytes.Clone(good[:len(good)-4])
	later[8] = 2
	putFile(t, fs, "data/"+membersName, le.AppendUint32(later, crcOf(later)))
	if err := openFor(fs, "data", shop.of("1, 2, 3")); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "later one") {
		t.Errorf("a later format: %v", err)
	}
	f, err := fs.Create("data/"+membersName, category)
	must(t, err)
	_, err = f.Write(good[:5])
	must(t, errors.Join(err, f.Close()))
	if err := openFor(fs, "data", shop.of("1")); !errs.Is(err, errs.Corrupt) || !errors.Is(err, ErrOwnerDamaged) || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("got %v", err)
	}
}
