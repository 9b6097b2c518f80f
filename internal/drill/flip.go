package drill

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/quorate/quorate/internal/errs"
)

// damage is a way to spoil the files of a node that does not run.
type damage string

const (
	// damageValues flips a bit in each of some of the latest values that were acknowledged, where they stand in the raft log.
	damageValues damage = "bits flipped in the values of log entries"
	// damageLogBits flips bits anywhere in the used part of the raft log.
	damageLogBits damage = "bits flipped in the raft log"
	// damageLogZero overwrites a block of the raft log with zeros.
	damageLogZero damage = "a block of the raft log zeroed"
	// damageLogCut makes a file of the raft log shorter.
	damageLogCut damage = "a file of the raft log truncated"
	// damageLogGone removes a file of the raft log.
	damageLogGone damage = "a file of the raft log removed"
	// damageStateBits flips bits anywhere in the state store's files.
	damageStateBits damage = "bits flipped in the state store"
	// damageStateZero overwrites a block of a file of the state store with zeros.
	damageStateZero damage = "a block of the state store zeroed"
)

func damages() []damage {
	return []damage{damageValues, damageLogBits, damageStateBits, damageLogZero, damageLogCut, damageStateZero, damageLogGone}
}

// spot is a file with the length of its used part: what is behind is zeros that were laid out in advance.
type spot struct {
	path string
	used int64
}

// usedFiles lists the files below a directory that hold anything, in order.
func usedFiles(dir string) ([]spot, error) {
	var out []spot
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "LOCK" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if b = bytes.TrimRight(b, "\x00"); len(b) > 0 {
			out = append(out, spot{path, int64(len(b))})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b spot) int { return bytes.Compare([]byte(a.path), []byte(b.path)) })
	return out, errs.Wrap(errs.Invalid, err, "look at the files in %s", dir)
}

// pickSpot draws a file with the chance that its used length gives it.
func pickSpot(rng *rand.Rand, spots []spot) spot {
	sum := int64(0)
	for _, s := range spots {
		sum += s.used
	}
	at := rng.Int64N(sum)
	for _, s := range spots {
		if at < s.used {
			return s
		}
		at -= s.used
	}
	return spots[len(spots)-1]
}

// inflict spoils the data directory of a node that is down, and says what it did; values are for damageValues.
func inflict(rng *rand.Rand, data string, how damage, values [][]byte) (string, error) {
	dir := filepath.Join(data, "log")
	if how == damageStateBits || how == damageStateZero {
		dir = filepath.Join(data, "state")
	}
	spots, err := usedFiles(dir)
	if err != nil {
		return "", err
	}
	if len(spots) == 0 {
		return "", errs.New(errs.NotFound, "%s holds no files with data", dir)
	}
	if how == damageValues {
		return flipValues(rng, spots, values)
	}
	s := pickSpot(rng, spots)
	name := filepath.Base(s.path)
	switch how {
	case damageLogBits, damageStateBits:
		n := 1 + rng.IntN(8)
		for range n {
			s = pickSpot(rng, spots)
			if err := flipBit(s.path, rng.Int64N(s.used), 1<<rng.IntN(8)); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("%d %s, the last in %s", n, how, filepath.Base(s.path)), nil
	case damageLogZero, damageStateZero:
		at, n := rng.Int64N(s.used), int64(512<<rng.IntN(4))
		n = min(n, s.used-at)
		f, err := os.OpenFile(s.path, os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		_, err = f.WriteAt(make([]byte, n), at)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return fmt.Sprintf("%s: %d bytes at %d of %s", how, n, at, name), err
	case damageLogCut:
		at := rng.Int64N(s.used)
		return fmt.Sprintf("%s: %s at %d", how, name, at), os.Truncate(s.path, at)
	case damageLogGone:
		return fmt.Sprintf("%s: %s", how, name), os.Remove(s.path)
	}
	return "", errs.New(errs.Internal, "no damage %q", how)
}

// flipValues flips one bit in the last bytes of values, in every place where they stand. Values are letters, and the lowest
// bit of a letter makes another letter of it, so that only a checksum can tell.
func flipValues(rng *rand.Rand, spots []spot, values [][]byte) (string, error) {
	flipped, want := 0, 1+rng.IntN(16)
	// The latest values are in the last segments.
	for _, s := range slices.Backward(spots) {
		if flipped >= want {
			break
		}
		b, err := os.ReadFile(s.path)
		if err != nil {
			return "", err
		}
		for _, v := range values {
			if flipped >= want {
				break
			}
			for from := 0; ; {
				i := bytes.Index(b[from:], v)
				if i < 0 {
					break
				}
				// Values end in letters; the first half may hold the number of the write.
				at := from + i + len(v)/2 + rng.IntN(len(v)/2)
				if err := flipBit(s.path, int64(at), 1); err != nil {
					return "", err
				}
				flipped++
				from += i + len(v)
			}
		}
	}
	if flipped == 0 {
		return "", errs.New(errs.NotFound, "none of %d values stands in the raft log", len(values))
	}
	return fmt.Sprintf("%d %s", flipped, damageValues), nil
}

func flipBit(path string, at int64, mask byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		b[0] ^= mask
		_, err = f.WriteAt(b[:], at)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
