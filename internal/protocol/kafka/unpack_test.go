package kafka

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// compress is what a producer does.
func compress(codec int16, b []byte) []byte {
	var buf bytes.Buffer
	switch codec {
	case 1:
		w := gzip.NewWriter(&buf)
		_, _ = w.Write(b)
		_ = w.Close()
	case 2:
		return snappy.Encode(nil, b)
	case 3:
		w := lz4.NewWriter(&buf)
		_, _ = w.Write(b)
		_ = w.Close()
	case 4:
		w, _ := zstd.NewWriter(&buf)
		_, _ = w.Write(b)
		_ = w.Close()
	default:
		return b
	}
	return buf.Bytes()
}

// xerialFramed makes the framed form of snappy, of blocks of so many bytes.
func xerialFramed(b []byte, blockBytes int) []byte {
	out := append([]byte(xerial), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(b) > 0 {
		n := min(len(b), blockBytes)
		block := snappy.Encode(nil, b[:n])
		out, b = append(binary.BigEndian.AppendUint32(out, uint32(len(block))), block...), b[n:]
	}
	return out
}

// unpackAll returns what a batch unpacks to.
func unpackAll(u *unpacker, codec int16, packed []byte) ([]byte, error) {
	x, err := u.open(context.Background(), codec, packed, 0)
	if err != nil {
		return nil, err
	}
	defer x.close()
	return io.ReadAll(x.out)
}

// repeated is what compresses well, and not to nothing.
func repeated(n int) []byte {
	b := bytes.Repeat([]byte("the same again and again, "), n/26+1)[:n]
	for i := 0; i < n; i += 999 {
		b[i] = byte(i >> 8)
	}
	return b
}

// Each codec undoes what those of clients make, in each of the ways that they do, also when it has been used before, and for what was wrong.
func TestUnpack_WhatClientsSend(t *testing.T) {
	u := newUnpacker()
	var forms []struct {
		name  string
		codec int16
		pack  func(b []byte) []byte
	}
	add := func(name string, codec int16, pack func(w io.Writer) io.WriteCloser) {
		forms = append(forms, struct {
			name  string
			codec int16
			pack  func(b []byte) []byte
		}{name, codec, func(b []byte) []byte {
			var buf bytes.Buffer
			w := pack(&buf)
			_, _ = w.Write(b)
			_ = w.Close()
			return buf.Bytes()
		}})
	}
	for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.BestCompression} {
		add(fmt.Sprint("gzip level ", level), 1, func(w io.Writer) io.WriteCloser {
			z, _ := gzip.NewWriterLevel(w, level)
			return z
		})
	}
	for _, size := range []lz4.BlockSize{lz4.Block64Kb, lz4.Block256Kb, lz4.Block1Mb, lz4.Block4Mb} {
		// With checksums of the content, of blocks, and with the other compressor.
		for _, flags := range []int{0, 1, 6, 7} {
			add(fmt.Sprint("lz4 blocks of ", size, ", flags ", flags), 3, func(w io.Writer) io.WriteCloser {
				z := lz4.NewWriter(w)
				opts := []lz4.Option{lz4.BlockSizeOption(size), lz4.ChecksumOption(flags&1 != 0), lz4.BlockChecksumOption(flags&2 != 0)}
				if flags&4 != 0 {
					opts = append(opts, lz4.CompressionLevelOption(lz4.Level9))
				}
				if err := z.Apply(opts...); err != nil {
					t.Error(err)
				}
				return z
			})
		}
	}
	for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
		add(fmt.Sprint("zstd ", level), 4, func(w io.Writer) io.WriteCloser {
			z, _ := zstd.NewWriter(w, zstd.WithEncoderLevel(level))
			return z
		})
	}
	// What zstd's highest levels state, whatever there is to compress.
	for _, window := range []int{1 << 10, 8 << 20, 32 << 20, 128 << 20} {
		add(fmt.Sprint("zstd window ", window), 4, func(w io.Writer) io.WriteCloser {
			z, _ := zstd.NewWriter(w, zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
			return z
		})
	}
	forms = append(forms, []struct {
		name  string
		codec int16
		pack  func(b []byte) []byte
	}{
		{"snappy block", 2, func(b []byte) []byte { return snappy.Encode(nil, b) }},
		{"snappy better", 2, func(b []byte) []byte { return s2.EncodeSnappyBest(nil, b) }},
		{"snappy framed", 2, func(b []byte) []byte { return xerialFramed(b, 32<<10) }},
		{"snappy framed, small blocks", 2, func(b []byte) []byte { return xerialFramed(b, 100) }},
		{"snappy framed, one block", 2, func(b []byte) []byte { return xerialFramed(b, 1<<30) }},
		{"zstd at once", 4, func(b []byte) []byte {
			z, _ := zstd.NewWriter(nil)
			return z.EncodeAll(b, nil)
		}},
		{"zstd, two frames", 4, func(b []byte) []byte { return append(compress(4, b[:len(b)/2]), compress(4, b[len(b)/2:])...) }},
		{"gzip, two members", 1, func(b []byte) []byte { return append(compress(1, b[:len(b)/2]), compress(1, b[len(b)/2:])...) }},
	}...)
	for _, f := range forms {
		for _, size := range []int{1, 100, 140_000} {
			want := repeated(size)
			packed := f.pack(want)
			if got, err := unpackAll(u, f.codec, packed); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes unpacked to %d: %v", f.name, size, len(got), err)
			}
			// What is cut off, or goes on, is never the whole, and spoils nothing.
			for _, bad := range [][]byte{packed[:2*len(packed)/3], packed[:len(packed)-1]} {
				if got, err := unpackAll(u, f.codec, bad); err == nil {
					t.Errorf("%s: %d of %d bytes unpacked to %d of %d", f.name, len(bad), len(packed), len(got), size)
				}
			}
			u.sizeMax = int64(size) - 1
			if got, err := unpackAll(u, f.codec, packed); !errs.Is(err, errs.TooLarge) {
				t.Errorf("%s: %d of %d bytes were let through: %v", f.name, len(got), size, err)
			}
			u.sizeMax = unpackedMax
		}
	}
	if len(u.turns) != 0 || len(u.room.units) != 0 {
		t.Errorf("%d turns and %d units of memory were not given back", len(u.turns), len(u.room.units))
	}
}

func TestUnpack_WhatIsWrong(t *testing.T) {
	u := newUnpacker()
	plain := repeated(1000)
	// Two stretches that take turns, so that s2 copies from where it copied before.
	var turns []byte
	for i := range 200 {
		turns = append(turns, "the same again and again, "...)
		turns = append(turns, byte(i*7), byte(i*13), byte(i*31))
	}
	ofS2 := s2.EncodeBest(nil, turns)
	if out, err := snappy.Decode(nil, ofS2); err != nil || !bytes.Equal(out, turns) || len(turns) > 20*len(ofS2) {
		t.Fatalf("%d bytes of s2: %v", len(ofS2), err)
	}
	// flagged is an lz4 frame with other flags, and a right checksum of its header.
	flagged := func(flags byte) []byte {
		b := compress(3, plain)
		b[4] = flags
		for range 256 {
			if ok, _ := lz4.ValidFrameHeader(b); ok {
				break
			}
			b[6]++
		}
		return b
	}
	var legacy bytes.Buffer
	w := lz4.NewWriter(&legacy)
	_ = w.Apply(lz4.LegacyOption(true))
	_, _ = w.Write(plain)
	_ = w.Close()
	change := func(codec int16, f func(b []byte) []byte) []byte { return f(compress(codec, plain)) }
	set := func(at int, v byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] = v; return b }
	}
	more := func(b []byte) []byte { return append(b, 1, 2, 3) }
	for _, c := range []struct {
		name   string
		codec  int16
		packed []byte
	}{
		{"gzip, garbage behind", 1, change(1, more)},
		{"gzip, another checksum", 1, change(1, func(b []byte) []byte { b[len(b)-5]++; return b })},
		{"snappy, garbage behind", 2, change(2, more)},
		{"snappy that is s2", 2, ofS2},
		{"snappy that states 1 GiB", 2, binary.AppendUvarint(nil, 1<<30)},
		{"snappy that states 1 GiB and has little", 2, append(binary.AppendUvarint(nil, 1<<30), make([]byte, 1000)...)},
		{"snappy framed, a block beyond the end", 2, append(xerialFramed(plain, 100), 0, 0, 1, 0, 1)},
		{"snappy framed, a wrong block", 2, append(xerialFramed(plain, 100), 0, 0, 0, 1, 9)},
		{"snappy framed, garbage behind", 2, more(xerialFramed(plain, 100))},
		{"lz4, garbage behind", 3, change(3, more)},
		{"lz4, two frames", 3, append(compress(3, plain), compress(3, plain)...)},
		{"lz4, dependent blocks", 3, flagged(0x44)},
		{"lz4, version 2", 3, flagged(0xa4)},
		{"lz4, blocks of 4 KiB", 3, change(3, set(5, 0x30))},
		{"lz4, blocks of 16 MiB", 3, change(3, set(5, 0x80))},
		{"lz4, another checksum of the header", 3, change(3, func(b []byte) []byte { b[6]++; return b })},
		{"lz4 of old", 3, legacy.Bytes()},
		{"zstd, garbage behind", 4, change(4, more)},
		{"zstd, a window of 1 GiB", 4, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0}},
		{"zstd with a dictionary", 4, []byte{0x28, 0xb5, 0x2f, 0xfd, 1, 0, 5, 1, 0, 0}},
	} {
		if got, err := unpackAll(u, c.codec, c.packed); err == nil {
			t.Errorf("%s: unpacked to %d bytes", c.name, len(got))
		}
	}
	for codec := int16(1); codec <= 4; codec++ {
		for _, bad := range [][]byte{nil, {1}, []byte("not compressed at all, not at all")} {
			if got, err := unpackAll(u, codec, bad); err == nil && len(got) > 0 {
				t.Errorf("codec %d: %q unpacked to %q", codec, bad, got)
			}
		}
	}
	for _, codec := range []int16{-1, 0, 5, 7} {
		if _, err := unpackAll(u, codec, nil); !errs.Is(err, errs.Unsupported) {
			t.Errorf("codec %d: %v", codec, err)
		}
	}
	if len(u.turns) != 0 || len(u.room.units) != 0 {
		t.Errorf("%d turns and %d units of memory were not given back", len(u.turns), len(u.room.units))
	}
}

// A bomb costs the bound, and little memory.
func TestUnpack_Bombs(t *testing.T) {
	u := newUnpacker()
	u.sizeMax = 24 << 20
	for codec := int16(1); codec <= 4; codec++ {
		bomb := compress(codec, make([]byte, u.sizeMax+1<<20))
		if codec == 2 {
			// One block takes as much memory as it unpacks to, and one of many little.
			bomb = xerialFramed(make([]byte, u.sizeMax+1<<20), 64<<10)
		}
		read := func() {
			x, err := u.open(t.Context(), codec, bomb, 0)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, struct{ io.Reader }{x.out})
			if size := x.close(); !errs.Is(err, errs.TooLarge) || n > u.sizeMax || size > u.sizeMax+unpackBuffer {
				t.Errorf("codec %d: %d and %d bytes came out: %v", codec, n, size, err)
			}
		}
		read()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		read()
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 12<<20 {
			t.Errorf("codec %d: a bomb took %d bytes of memory", codec, took)
		}
	}
	// What is stated is believed if it is too much, before anything is made room for.
	for name, c := range map[string]struct {
		codec  int16
		packed []byte
	}{
		"a block of snappy": {2, append(binary.AppendUvarint(nil, unpackedMax+1), make([]byte, unpackedMax/20)...)},
		"a frame of zstd":   {4, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 0, 0, 8, 1, 0, 0}},
	} {
		if _, err := unpackAll(u, c.codec, c.packed); !errs.Is(err, errs.TooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Those that unpack take turns, so that a long one does not hold up the rest, and wait for no longer than they may.
func TestUnpack_TakesTurns(t *testing.T) {
	u := newUnpacker()
	u.turns = make(chan struct{}, 1)
	long, err := u.open(t.Context(), 4, compress(4, make([]byte, 64<<20)), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer long.close()
	if _, err := long.out.Peek(1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	late := make(chan error)
	go func() {
		x, err := u.open(ctx, 4, compress(4, []byte("hello")), 0)
		if err == nil {
			_, err = io.ReadAll(x.out)
			x.close()
		}
		late <- err
	}()
	// The long one goes on until the other has had its turn, which is before its end.
	done := false
	for !done {
		if _, err := long.out.Discard(unpackBuffer); err != nil {
			t.Fatalf("the long one ended with the other waiting: %v", err)
		}
		select {
		case err := <-late:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
			runtime.Gosched()
		}
	}
	go func() {
		x, err := u.open(ctx, 1, compress(1, []byte("hello")), 0)
		if err == nil {
			_, err = io.ReadAll(x.out)
			x.close()
		}
		late <- err
	}()
	cancel()
	if err := <-late; !errs.Is(err, errs.Overloaded) {
		t.Errorf("one whose time is over: %v", err)
	}
	// Not even if it could be its turn: a request may have many batches.
	u = newUnpacker()
	for range 50 {
		x, err := u.open(ctx, 1, compress(1, []byte("hello")), 0)
		if err == nil {
			_, err = io.ReadAll(x.out)
			x.close()
		}
		if !errs.Is(err, errs.Overloaded) {
			t.Fatalf("one whose time was over at first: %v", err)
		}
	}
}

func BenchmarkUnpack(b *testing.B) {
	// Records as of logs, of 200 bytes.
	var times []int64
	for i := range 5000 {
		times = append(times, 1_700_000_000_000+int64(i))
	}
	line := func(i int) []byte {
		return fmt.Appendf(nil, `{"time":%d,"level":"info","msg":"request served","path":"/v1/orders/%d","status":200,"took_us":%d,"user":"user-%d","trace":"%016x"}`, times[i], i*7919, i%1777, i%97, uint64(i)*0x9e3779b97f4a7c15)
	}
	var body []byte
	for i := range times {
		r := kmsg.Record{TimestampDelta64: times[i] - times[0], OffsetDelta: int32(i), Key: fmt.Appendf(nil, "user-%d", i%97), Value: line(i)}
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		body = r.AppendTo(body)
	}
	s := New(Config{}, nil, slog.New(slog.DiscardHandler), nil)
	for codec := int16(0); codec <= 4; codec++ {
		batch := seal(kmsg.RecordBatch{
			Magic: 2, Attributes: codec, LastOffsetDelta: int32(len(times) - 1), FirstTimestamp: times[0], MaxTimestamp: times[len(times)-1],
			ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(times)), Records: compress(codec, body),
		})
		b.Run([]string{"none", "gzip", "snappy", "lz4", "zstd"}[codec], func(b *testing.B) {
			w := &produceWork{ctx: b.Context()}
			h, err := eventlog.CheckBatch(batch)
			if err != nil {
				b.Fatal(err)
			}
			// By what the batch unpacks to.
			b.SetBytes(int64(len(body)))
			b.ReportMetric(float64(len(body))/float64(len(batch)), "ratio")
			for b.Loop() {
				w.unpacked = 0
				if _, _, err := w.records(s, &eventlog.Topic{}, h, batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
