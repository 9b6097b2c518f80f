package kafka

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
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

func TestDecompress_BombsAndGarbage(t *testing.T) {
	zeros := make([]byte, decompressedMax+1)
	for codec := int16(1); codec <= 4; codec++ {
		if _, err := decompress(codec, compress(codec, zeros)); err == nil {
			t.Errorf("codec %d: a bomb was unpacked", codec)
		}
		for _, bad := range [][]byte{nil, {1}, []byte("not compressed at all, not at all"), compress(codec, []byte("hello"))[:5]} {
			if out, err := decompress(codec, bad); err == nil && len(out) > 0 {
				t.Errorf("codec %d: %q unpacked to %q", codec, bad, out)
			}
		}
	}
	if _, err := decompress(5, nil); err == nil {
		t.Error("codec 5 was accepted")
	}
	framed := []byte(xerial)
	framed = append(framed, 0, 0, 0, 1, 0, 0, 0, 1)
	block := snappy.Encode(nil, []byte("hello "))
	for range 2 {
		framed = append(binary.BigEndian.AppendUint32(framed, uint32(len(block))), block...)
	}
	if out, err := decompress(2, framed); err != nil || string(out) != "hello hello " {
		t.Errorf("framed snappy: %q, %v", out, err)
	}
	if _, err := decompress(2, framed[:len(framed)-1]); err == nil {
		t.Error("cut framed snappy was accepted")
	}
}
