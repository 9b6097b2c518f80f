package eventlog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/quorate/quorate/internal/errs"
)

// checkAll checks a batch and its records, as those of a batch that is not compressed, and as streams of which little is in memory at a time. All have to come
// to the same.
func checkAll(t testing.TB, b []byte, topic Topic) (BatchHeader, int64, error) {
	t.Helper()
	stated, err := CheckBatch(b)
	if err != nil {
		return stated, 0, err
	}
	whole := bytes.Clone(b)
	h, token, err := CheckRecords(b, stated, nil, &topic)
	for name, src := range map[string]io.Reader{
		"bytes": iotest.OneByteReader(bytes.NewReader(whole[BatchHeaderSize:])), "at once": bytes.NewReader(whole[BatchHeaderSize:]),
		"with its end": iotest.DataErrReader(bytes.NewReader(whole[BatchHeaderSize:])),
	} {
		c := bytes.Clone(whole)
		h2, token2, err2 := CheckRecords(c, stated, bufio.NewReaderSize(src, RecordsBuffer), &topic)
		if h2 != h || token2 != token || fmt.Sprint(err2) != fmt.Sprint(err) || !bytes.Equal(c, b) {
			t.Errorf("%s: %+v %d %v; in memory %+v %d %v", name, h2, token2, err2, h, token, err)
		}
	}
	return h, token, err
}

// rawBatch makes a batch of records that are given as they are, without their lengths.
func rawBatch(records ...[]byte) []byte {
	w := newBatchBuilder(64)
	for _, r := range records {
		w.b = append(binary.AppendVarint(w.b, int64(len(r))), r...)
		w.n++
	}
	return w.finish(0, -1)
}

// raw makes a record of numbers, which are varints, of strings, which are bytes, and of bytes.
func raw(fields ...any) (b []byte) {
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			b = binary.AppendVarint(b, int64(f))
		case byte:
			b = append(b, f)
		case string:
			b = append(b, f...)
		}
	}
	return b
}

func TestCheckRecords_EachField(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		name   string
		record []byte
		ok     bool
	}{
		{"all null", raw(byte(0), 0, 0, -1, -1, 0), true},
		{"all empty", raw(byte(0), 0, 0, 0, 0, 0), true},
		{"attributes are not looked at", raw(byte(255), 0, 0, -1, -1, 0), true},
		{"key and value", raw(byte(0), 0, 0, 3, "key", 1000, long, 0), true},
		{"headers", raw(byte(0), 0, 0, -1, -1, 3, 1, "h", -1, 0, "", 0, "", 1000, long, 1000, long), true},
		{"a token elsewhere", raw(byte(0), 0, 0, -1, -1, 1, 13, FenceHeader, 1000, long), true},
		{"a time delta of ten bytes", raw(byte(0), "\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, -1, -1, 0), true},
		{"a length of five bytes", raw(byte(0), 0, 0, "\x86\x80\x80\x80\x00", "key", -1, 0), true},

		{"nothing", nil, false},
		{"only attributes", raw(byte(0)), false},
		{"cut in the time", raw(byte(0), "\x80"), false},
		{"no offset", raw(byte(0), 0), false},
		{"no key", raw(byte(0), 0, 0), false},
		{"no value", raw(byte(0), 0, 0, -1), false},
		{"no count of headers", raw(byte(0), 0, 0, -1, -1), false},
		{"offset of 1", raw(byte(0), 0, 1, -1, -1, 0), false},
		{"offset of -1", raw(byte(0), 0, -1, -1, -1, 0), false},
		{"offset of more than 32 bits", raw(byte(0), 0, 1<<32, -1, -1, 0), false},
		{"a time delta of eleven bytes", raw(byte(0), strings.Repeat("\x80", 10)+"\x00", 0, -1, -1, 0), false},
		{"a length of six bytes", raw(byte(0), 0, 0, "\x86\x80\x80\x80\x80\x00", "key", -1, 0), false},
		{"key beyond the record", raw(byte(0), 0, 0, 4, "key"), false},
		{"key below null", raw(byte(0), 0, 0, -2, -1, 0), false},
		{"key of 2 GiB", raw(byte(0), 0, 0, 1<<31-1, "key", -1, 0), false},
		{"key of more", raw(byte(0), 0, 0, 1<<40, "key", -1, 0), false},
		{"value beyond the record", raw(byte(0), 0, 0, -1, 2000, long, 0), false},
		{"value below null", raw(byte(0), 0, 0, -1, -5, 0), false},
		{"headers below 0", raw(byte(0), 0, 0, -1, -1, -1), false},
		{"more headers than bytes", raw(byte(0), 0, 0, -1, -1, 1<<31-1), false},
		{"a header too few", raw(byte(0), 0, 0, -1, -1, 2, 1, "h", -1), false},
		{"header without a name", raw(byte(0), 0, 0, -1, -1, 1, -1, -1), false},
		{"name beyond the record", raw(byte(0), 0, 0, -1, -1, 1, 13, "quorate"), false},
		{"header without a value", raw(byte(0), 0, 0, -1, -1, 1, 1, "h"), false},
		{"value of a header below null", raw(byte(0), 0, 0, -1, -1, 1, 1, "h", -2), false},
		{"value of a header beyond the record", raw(byte(0), 0, 0, -1, -1, 1, 1, "h", 2, "v"), false},
		{"token below null", raw(byte(0), 0, 0, -1, -1, 1, 13, FenceHeader, -2), false},
		{"token beyond the record", raw(byte(0), 0, 0, -1, -1, 1, 13, FenceHeader, 9, "7"), false},
		{"more than its fields", raw(byte(0), 0, 0, -1, -1, 0, 0), false},
	} {
		for at := range int64(2) {
			// The record is the last, and has one behind it, whose bytes are not its.
			list := [][]byte{c.record}
			if at == 1 {
				list = append(list, raw(byte(0), 0, 1, -1, 3, "end", 0))
			}
			_, _, err := checkAll(t, rawBatch(list...), Topic{})
			if got := code(err); c.ok && err != nil || !c.ok && got != "INVALIDRECORD" {
				t.Errorf("%s, followed by %d: %v", c.name, at, err)
			}
		}
	}
}

// A record's length counts, even where its fields say where it ends.
func TestCheckRecords_Lengths(t *testing.T) {
	for by := -3; by <= 3; by++ {
		b := rawBatch(raw(byte(0), 0, 0, 3, "key", -1, 0), raw(byte(0), 0, 1, -1, 3, "end", 0))
		b[BatchHeaderSize] = byte(int(b[BatchHeaderSize]) + 2*by)
		if _, _, err := checkAll(t, resum(b), Topic{}); (by == 0) != (err == nil) || err != nil && code(err) != "INVALIDRECORD" {
			t.Errorf("a length that is %d too large: %v", by, err)
		}
	}
}

func TestCheckRecords_WhatTheReaderEndsWith(t *testing.T) {
	b := batchOf(1, 2)
	h, _ := ReadBatchHeader(b)
	body := b[BatchHeaderSize:]
	over := errs.New(errs.TooLarge, "too much")
	for n := range len(body) + 1 {
		for _, c := range []struct {
			end  error
			want string
		}{{over, "TooLarge"}, {errors.New("wrong"), "INVALIDRECORD"}, {io.ErrUnexpectedEOF, "INVALIDRECORD"}} {
			src := io.MultiReader(bytes.NewReader(body[:n]), iotest.ErrReader(c.end))
			want := c.want
			if c.end == error(over) {
				want = code(over)
			}
			if _, _, err := CheckRecords(bytes.Clone(b), h, bufio.NewReaderSize(src, RecordsBuffer), &Topic{}); code(err) != want {
				t.Errorf("%d bytes and %v: %v, want %q", n, c.end, err, want)
			}
			src = io.MultiReader(bytes.NewReader(body[:n]), iotest.ErrReader(c.end))
			if _, _, ok, err := FindTime(b, h, bufio.NewReaderSize(src, RecordsBuffer), 3); ok || n < len(body) && code(err) != want {
				t.Errorf("find in %d bytes and %v: %v, %v", n, c.end, ok, err)
			}
		}
	}
}

func BenchmarkCheckRecords(b *testing.B) {
	for _, size := range []int{20, 100, 1000, 10000} {
		w := newBatchBuilder(1 << 20)
		value := bytes.Repeat([]byte("x"), size)
		for len(w.b) < 1<<20 {
			w.add(1000+int64(w.n), []byte("key-abcdef"), false, value, false, []Header{{"h", []byte("value")}})
		}
		batch := w.finish(0, 0)
		check := func(b *testing.B, body *bufio.Reader) {
			h, err := CheckBatch(batch)
			if err == nil {
				_, _, err = CheckRecords(batch, h, body, &Topic{})
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("in memory/%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(batch)))
			for b.Loop() {
				check(b, nil)
			}
		})
		b.Run(fmt.Sprintf("stream/%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(batch)))
			r := bufio.NewReaderSize(nil, 32<<10)
			for b.Loop() {
				r.Reset(bytes.NewReader(batch[BatchHeaderSize:]))
				check(b, r)
			}
		})
	}
}
