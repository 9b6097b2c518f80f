package storage

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// openDirect opens a segment file for direct writes, or skips the test where the file system cannot do them.
func openDirect(t *testing.T, name string) *directFile {
	t.Helper()
	f, err := OSFS().OpenReadWrite(name, category)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	d, ok := f.(*directFile)
	if !ok {
		t.Skip("this file system has no direct writes")
	}
	return d
}

// TestDirectFile_HoldsWhatWasWritten appends pieces of all lengths, as a log does, and now and then starts over somewhere else.
func TestDirectFile_HoldsWhatWasWritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 20 {
		f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
		var want []byte
		write := func(b []byte, at int) {
			t.Helper()
			if n, err := f.WriteAt(b, int64(at)); n != len(b) || err != nil {
				t.Fatalf("round %d: WriteAt(%d bytes, %d) = %d, %v", round, len(b), at, n, err)
			}
			if grow := at + len(b) - len(want); grow > 0 {
				want = append(want, make([]byte, grow)...)
			}
			copy(want[at:], b)
		}
		write(make([]byte, 64<<10+rng.IntN(3)*8), 0)
		pos := rng.IntN(5000)
		for range 60 {
			b := make([]byte, 1+rng.IntN([]int{40, 600, 9000, 40000}[rng.IntN(4)]))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			write(b, pos)
			pos += len(b)
			// What is behind the last write has no meaning.
			got := make([]byte, pos)
			if n, err := f.ReadAt(got, 0); n != pos || err != nil {
				t.Fatalf("round %d: ReadAt = %d, %v; want %d bytes", round, n, err, pos)
			}
			if !bytes.Equal(got, want[:pos]) {
				t.Fatalf("round %d: at %d something else is read than was written", round, pos)
			}
			at := rng.IntN(pos)
			part := make([]byte, 1+rng.IntN(pos-at))
			if n, err := f.ReadAt(part, int64(at)); n != len(part) || err != nil || !bytes.Equal(part, want[at:at+len(part)]) {
				t.Fatalf("round %d: ReadAt(%d bytes, %d) = %d, %v", round, len(part), at, n, err)
			}
			if rng.IntN(10) == 0 {
				pos = rng.IntN(pos)
			}
		}
		must(t, f.SyncData())
		got, err := os.ReadFile(f.raw.Name())
		if err != nil || !bytes.Equal(got[:pos], want[:pos]) {
			t.Fatalf("round %d: the file holds something else than was written: %v", round, err)
		}
	}
}

func TestDirectFile_ReadsUpToTheEnd(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 5000), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ at, n, want int }{{0, 5000, 5000}, {4990, 20, 10}, {5000, 1, 0}, {9000, 10, 0}, {20000, 10, 0}} {
		b := make([]byte, c.n)
		n, err := f.ReadAt(b, int64(c.at))
		if n != c.want || (err == nil) != (n == c.n) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v; want %d", c.n, c.at, n, err, c.want)
		}
	}
}

// TestDirectFile_FileGrowsAsAsked writes past the end: the file gets the length that it would have had.
func TestDirectFile_FileGrowsAsAsked(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	for _, n := range []int{1, 4096, 100, 8192, 3} {
		st, err := f.Stat()
		must(t, err)
		if _, err := f.WriteAt(make([]byte, n), st.Size()); err != nil {
			t.Fatal(err)
		}
		after, err := f.Stat()
		must(t, err)
		if after.Size() != st.Size()+int64(n) {
			t.Errorf("%d bytes more: the file grew from %d to %d", n, st.Size(), after.Size())
		}
	}
}

// TestDirectFile_GoesOnWhereItIsRefused breaks the alignment of all direct writes: they are refused, and done in the usual way.
func TestDirectFile_GoesOnWhereItIsRefused(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	if _, err := f.WriteAt(make([]byte, 16<<10), 0); err != nil {
		t.Fatal(err)
	}
	f.buf = aligned(64<<10 + 1)[1:]
	for i := range 3 {
		if n, err := f.WriteAt([]byte("hello"), int64(100+5*i)); n != 5 || err != nil {
			t.Fatalf("WriteAt = %d, %v", n, err)
		}
	}
	if !f.plain {
		t.Skip("this disk takes any memory")
	}
	b := make([]byte, 15)
	if _, err := f.ReadAt(b, 100); err != nil || string(b) != "hellohellohello" {
		t.Errorf("read %q, %v", b, err)
	}
}

// TestDirectFile_AnyOrder writes to a block twice that it has in memory, with a gap and with a write of another kind in between.
func TestDirectFile_AnyOrder(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	want := make([]byte, 3<<20)
	write := func(c byte, n, at int) {
		t.Helper()
		b := bytes.Repeat([]byte{c}, n)
		if n, err := f.WriteAt(b, int64(at)); n != len(b) || err != nil {
			t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(b), at, n, err)
		}
		copy(want[at:], b)
	}
	check := func(end int) {
		t.Helper()
		got := make([]byte, end)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want[:end]) {
			t.Fatalf("something else is read than was written: %v", err)
		}
	}
	write('z', len(want), 0)
	write('a', 1000, 0)
	write('b', 100, 0) // what is behind it in the block becomes zeros
	clear(want[100:directBlock])
	write('c', 100, 600)
	check(700)
	write('d', directMax+1, 300)
	write('e', 10, 650)
	check(660)
	if len(f.buf) > directMax {
		t.Errorf("%d bytes are kept for writes", len(f.buf))
	}
}

// TestDirectFile_ZerosBehind: what stands behind the end of the log is nothing that was written before.
func TestDirectFile_ZerosBehind(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	for _, w := range []struct{ n, at int }{{64 << 10, 0}, {5 * directBlock, 4 * directBlock}, {10, 5000}, {10, 5010}} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), w.n), int64(w.at)); err != nil {
			t.Fatal(err)
		}
	}
	rest := make([]byte, 2*directBlock-5020)
	if _, err := f.ReadAt(rest, 5020); err != nil || !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Errorf("behind the last write stands %q, %v", rest[:10], err)
	}
}

// TestDirectFile_ErrorsAreTold has a disk that cannot be read, and one that cannot be written: what is there stays, and nothing counts as written.
func TestDirectFile_ErrorsAreTold(t *testing.T) {
	for _, mode := range []int{os.O_RDONLY, os.O_WRONLY} {
		f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
		old := bytes.Repeat([]byte("x"), 64<<10)
		if _, err := f.WriteAt(old, 0); err != nil {
			t.Fatal(err)
		}
		name := f.raw.Name()
		must(t, f.raw.Close())
		raw, err := os.OpenFile(name, mode|syscall.O_DIRECT, 0)
		must(t, err)
		f.raw = raw
		if n, err := f.WriteAt([]byte("new"), 5000); n != 0 || err == nil {
			t.Errorf("mode %d: WriteAt = %d, %v", mode, n, err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, old) {
			t.Errorf("mode %d: the file was changed: %v", mode, err)
		}
	}
}

func TestDirectFile_CloseClosesBoth(t *testing.T) {
	f := openDirect(t, filepath.Join(t.TempDir(), segmentName(1)))
	must(t, f.Close())
	if _, err := f.raw.Stat(); err == nil {
		t.Error("the file for direct writes is open")
	}
	if _, err := f.File.Stat(); err == nil {
		t.Error("the file beside it is open")
	}
}

// TestDirectFS_OnlySegments: the state store's files are read again and again, and stay in the page cache.
func TestDirectFS_OnlySegments(t *testing.T) {
	f, err := OSFS().OpenReadWrite(filepath.Join(t.TempDir(), "000001.sst"), category)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, is := f.(*directFile); is {
		t.Error("a file of the state store is written past the page cache")
	}
}
