package kafka

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/quorate/quorate/internal/errs"
)

// decompressedMax bounds what a batch may unpack to when the server looks inside, which it does for ListOffsets by time and
// for topics with a lock.
const decompressedMax = 64 << 20

// xerial is the start of the framed form of snappy that Java clients write.
const xerial = "\x82SNAPPY\x00"

// decompress undoes a batch's codec.
func decompress(codec int16, b []byte) ([]byte, error) {
	var r io.Reader
	switch codec {
	case 0:
		return b, nil
	case 1:
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, errs.Wrap(errs.Corrupt, err, "gzip")
		}
		r = z
	case 2:
		return unsnappy(b)
	case 3:
		r = lz4.NewReader(bytes.NewReader(b))
	case 4:
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(decompressedMax))
		if err != nil {
			return nil, errs.Wrap(errs.Corrupt, err, "zstd")
		}
		defer z.Close()
		r = z
	default:
		return nil, errs.New(errs.Unsupported, "compression codec %d", codec)
	}
	out, err := io.ReadAll(io.LimitReader(r, decompressedMax+1))
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "compression codec %d", codec)
	}
	if len(out) > decompressedMax {
		return nil, unpacksTooLarge(len(out))
	}
	return out, nil
}

func unpacksTooLarge(n int) error {
	return errs.New(errs.TooLarge, "a batch unpacks to %d bytes or more; at most %d are looked at", n, decompressedMax)
}

func unsnappy(b []byte) ([]byte, error) {
	if len(b) < 16 || string(b[:8]) != xerial {
		return unsnappyBlock(nil, b)
	}
	var out []byte
	for b = b[16:]; len(b) > 0; {
		if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, errs.New(errs.Corrupt, "snappy block beyond the end")
		}
		n := binary.BigEndian.Uint32(b)
		var err error
		if out, err = unsnappyBlock(out, b[4:4+n]); err != nil {
			return nil, err
		}
		b = b[4+n:]
	}
	return out, nil
}

func unsnappyBlock(out, b []byte) ([]byte, error) {
	n, err := snappy.DecodedLen(b)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "snappy")
	}
	if n+len(out) > decompressedMax {
		return nil, unpacksTooLarge(n + len(out))
	}
	part, err := snappy.Decode(nil, b)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "snappy")
	}
	return append(out, part...), nil
}
