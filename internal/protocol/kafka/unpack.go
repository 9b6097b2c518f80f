package kafka

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/quorate/quorate/internal/errs"
)

const (
	// unpackedMax is what a batch may unpack to. It is eight times the largest that a topic can be set to take, and 128 times what most take.
	unpackedMax = 128 << 20
	// unpackedRequestMax is what the batches of one request may unpack to: twenty times the largest request.
	unpackedRequestMax = 2 << 30
	// unpackRoomMax bounds the memory of all codecs at work, and unpackRoomUnit is what it is counted in.
	unpackRoomMax  = 128 << 20
	unpackRoomUnit = 1 << 20
	// unpackTurn is after how much of what a batch unpacks to another one has its turn.
	unpackTurn = 1 << 20
	// unpackBuffer is how much of what a batch unpacks to is handed over at a time.
	unpackBuffer = 32 << 10
	// unpackKeepMax is how much memory a codec that waits for its next batch may hold: a window of 8 MiB, which many streams of zstd have, and the rest.
	unpackKeepMax = 9 << 20
)

// unpacker looks into compressed batches, as streams: a batch of some bytes may unpack to thousands of times as many. It bounds the memory that codecs take
// together, and how many work at a time, so that consensus and other requests get their share of the processors whatever is sent.
type unpacker struct {
	// sizeMax is what a batch may unpack to, and requestMax what those of a request may. Tests set less.
	sizeMax, requestMax int64

	room *budget
	// turns has as many places as may work at a time.
	turns chan struct{}
	// idle has what can be used again, by codec.
	idle [len(codecs)]sync.Pool
}

func newUnpacker() *unpacker {
	return &unpacker{
		sizeMax: unpackedMax, requestMax: unpackedRequestMax, room: newBudget(unpackRoomMax, unpackRoomUnit),
		turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
}

// codecs make what undoes each of the codecs of KIP-98 and KIP-110.
var codecs = [...]func() codec{
	1: func() codec { return &gzipCodec{} },
	2: func() codec { return &snappyCodec{} },
	3: func() codec { return &lz4Codec{r: lz4.NewReader(nil)} },
	4: func() codec { return &zstdCodec{} },
}

// codec undoes one way of compression. Its errors say what is wrong with what was packed.
type codec interface {
	io.Reader
	// needs says how much memory it takes to unpack a batch, and refuses what can be seen to be wrong or, with errClaims, to be too much.
	needs(packed []byte) (bytes int, err error)
	// reset begins to unpack.
	reset(packed []byte) error
	// drop forgets what was packed.
	drop()
}

// unpacking is a batch that is being unpacked.
type unpacking struct {
	u   *unpacker
	ctx context.Context
	// which is the number of the codec.
	which int16
	codec codec
	room  *grant
	needs int
	// size is how many bytes came out; at most sizeMax may.
	size, sizeMax int64
	// turnEnd is the size at which the turn is over. working says whether it is this one's.
	turnEnd int64
	working bool
	// err is why there is no more.
	err error
	out *bufio.Reader
}

// open begins to unpack a batch of a request whose others have come to so many bytes, and waits for its turn. Who asks reads from out, which ends with
// what was wrong, and calls close at the end.
func (u *unpacker) open(ctx context.Context, which int16, packed []byte, others int64) (*unpacking, error) {
	if which <= 0 || int(which) >= len(codecs) {
		return nil, errs.New(errs.Unsupported, "compression codec %d", which)
	}
	x, ok := u.idle[which].Get().(*unpacking)
	if !ok {
		x = &unpacking{u: u, which: which, codec: codecs[which]()}
		x.out = bufio.NewReaderSize(nil, unpackBuffer)
	}
	*x = unpacking{u: u, ctx: ctx, which: which, codec: x.codec, sizeMax: min(u.sizeMax, u.requestMax-others), out: x.out}
	x.out.Reset(x)
	var err error
	if x.needs, err = x.codec.needs(packed); err == nil {
		x.room, err = u.room.grant(ctx, x.needs+unpackBuffer)
	}
	if err == nil {
		err = x.turn()
	}
	if err == nil {
		err = x.codec.reset(packed)
	}
	if errors.Is(err, errClaims) {
		err = u.tooLarge(false)
	}
	x.err = err
	return x, nil
}

// turn waits until this batch may be unpacked further.
func (x *unpacking) turn() error {
	if x.working {
		x.working = false
		<-x.u.turns
	}
	// Both may be so at once, and a request that has no time left ends, however many batches it has.
	if x.ctx.Err() == nil {
		select {
		case x.u.turns <- struct{}{}:
			x.working, x.turnEnd = true, x.size+unpackTurn
			return nil
		case <-x.ctx.Done():
		}
	}
	return errs.New(errs.Overloaded, "the request's time was over before its compressed batches were looked into")
}

// Read implements io.Reader.
func (x *unpacking) Read(p []byte) (n int, err error) {
	if x.err == nil && x.size >= x.turnEnd {
		x.err = x.turn()
	}
	if x.err != nil {
		return 0, x.err
	}
	n, x.err = x.codec.Read(p)
	x.size += int64(n)
	if x.size > x.sizeMax {
		x.err = x.u.tooLarge(x.sizeMax < x.u.sizeMax)
		return 0, x.err
	}
	return n, x.err
}

// close ends it, and returns how many bytes came out.
func (x *unpacking) close() int64 {
	if x.working {
		<-x.u.turns
	}
	if x.room != nil {
		x.room.keep(0)
	}
	x.codec.drop()
	x.ctx, x.room, x.working, x.err = nil, nil, false, io.ErrClosedPipe
	// Whoever takes it next writes to it.
	size := x.size
	if x.needs <= unpackKeepMax {
		x.u.idle[x.which].Put(x)
	}
	return size
}

// tooLarge is MESSAGE_TOO_LARGE, with which Java's producer divides a batch of several records, and others give up.
func (u *unpacker) tooLarge(others bool) error {
	if others {
		return errs.New(errs.TooLarge, "the batches of the request unpack to more than %d bytes together; send fewer in a request", u.requestMax)
	}
	return errs.New(errs.TooLarge, "the batch unpacks to more than %d bytes; send fewer records in a batch", u.sizeMax)
}

// errClaims is for batches that state to unpack to more than one may.
var errClaims = errors.New("more than a batch may unpack to")

type gzipCodec struct {
	in bytes.Reader
	r  gzip.Reader
}

// needs is a window of 32 KiB, and tables.
func (c *gzipCodec) needs([]byte) (int, error) { return 64 << 10, nil }

func (c *gzipCodec) reset(packed []byte) error {
	c.in.Reset(packed)
	return c.r.Reset(&c.in)
}

func (c *gzipCodec) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *gzipCodec) drop() { c.in.Reset(nil) }

// lz4Codec takes the frames that Java does: one, of blocks that do not depend on each other (Kafka's Lz4BlockInputStream).
type lz4Codec struct {
	in bytes.Reader
	r  *lz4.Reader
}

const lz4Magic = 0x184d2204

func (c *lz4Codec) needs(packed []byte) (int, error) {
	if len(packed) < 7 || binary.LittleEndian.Uint32(packed) != lz4Magic {
		return 0, errors.New("no lz4 frame")
	}
	flags, block := packed[4], packed[5]>>4
	switch {
	case flags&0xe3 != 0x60:
		return 0, errors.New("an lz4 frame of another version, of dependent blocks or with a dictionary, which Kafka's clients do not read")
	case block < 4 || block > 7 || packed[5]&0x0f != 0:
		return 0, errors.New("an lz4 frame of blocks of no known size")
	}
	// 64 KiB, 256 KiB, 1 MiB or 4 MiB, packed and not.
	if blockBytes := 256 << (2 * block); lz4FrameLen(packed, flags) == len(packed) {
		return 2 * blockBytes, nil
	}
	return 0, errors.New("an lz4 frame that is cut off, or not all that there is")
}

// lz4FrameLen returns how long a frame is by the lengths of its blocks, or what is more than there is.
func lz4FrameLen(b []byte, flags byte) int {
	const blockChecksum, contentSize, contentChecksum = 0x10, 0x08, 0x04
	bit := func(mask byte, n int) int {
		if flags&mask != 0 {
			return n
		}
		return 0
	}
	at := 7 + bit(contentSize, 8)
	for at+4 <= len(b) {
		n := int(binary.LittleEndian.Uint32(b[at:]) &^ (1 << 31))
		at += 4
		if n == 0 {
			return at + bit(contentChecksum, 4)
		}
		at += n + bit(blockChecksum, 4)
	}
	return len(b) + 1
}

func (c *lz4Codec) reset(packed []byte) error {
	c.in.Reset(packed)
	c.r.Reset(&c.in)
	return nil
}

func (c *lz4Codec) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *lz4Codec) drop() {
	c.in.Reset(nil)
	c.r.Reset(&c.in)
}

type zstdCodec struct {
	in bytes.Reader
	// r is made for the first batch, and windowMax is the largest window that it takes.
	r         *zstd.Decoder
	windowMax uint64
}

func (c *zstdCodec) needs(packed []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return 0, err
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	if h.HasFCS && h.FrameContentSize > unpackedMax {
		return 0, errClaims
	}
	if window > unpackedMax {
		return 0, errors.New("a zstd window of more than 128 MiB, which clients do not read")
	}
	// Frames that follow may have as large a window, and those of 1 MiB need not be counted.
	c.windowMax = max(window, 1<<20)
	return int(window) + 512<<10, nil
}

func (c *zstdCodec) reset(packed []byte) (err error) {
	c.in.Reset(packed)
	if c.r == nil {
		// Without concurrency there are no goroutines, and nothing to close.
		if c.r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true)); err != nil {
			return err
		}
	}
	return c.r.ResetWithOptions(&c.in, zstd.WithDecoderMaxWindow(c.windowMax))
}

func (c *zstdCodec) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *zstdCodec) drop() {
	c.in.Reset(nil)
	if c.r != nil {
		_ = c.r.Reset(nil)
	}
}

// xerial is the start of the framed form of snappy that Java clients write: the magic, a version, and the oldest that reads it. Blocks follow,
// each behind its length.
const (
	xerial     = "\x82SNAPPY\x00"
	xerialHead = 16
)

// snappyCodec undoes snappy, block by block: a block can only be undone as a whole.
type snappyCodec struct {
	// packed is what is left to be undone, framed or one block. block is the memory for blocks, and out what is left of the last.
	packed []byte
	framed bool
	block  []byte
	out    []byte
}

// nextBlock splits a block off.
func (c *snappyCodec) nextBlock(b []byte) (block, rest []byte, err error) {
	if !c.framed {
		return b, nil, nil
	}
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, errors.New("a snappy block beyond the end")
	}
	n := 4 + int(binary.BigEndian.Uint32(b))
	return b[4:n], b[n:], nil
}

func (c *snappyCodec) needs(packed []byte) (needs int, err error) {
	c.framed = len(packed) >= xerialHead && string(packed[:len(xerial)]) == xerial
	if c.framed {
		packed = packed[xerialHead:]
	}
	for rest := packed; len(rest) > 0; {
		var block []byte
		if block, rest, err = c.nextBlock(rest); err != nil {
			return 0, err
		}
		n, err := snappy.DecodedLen(block)
		switch {
		case err != nil:
			return 0, err
		case n > 22*len(block):
			// Three bytes copy 64 at most.
			return 0, errors.New("a snappy block that states more than it can hold")
		case n > unpackedMax:
			return 0, errClaims
		}
		needs = max(needs, n)
	}
	return needs, nil
}

func (c *snappyCodec) reset(packed []byte) error {
	if c.framed {
		packed = packed[xerialHead:]
	}
	c.packed, c.out = packed, nil
	return nil
}

func (c *snappyCodec) Read(p []byte) (int, error) {
	for len(c.out) == 0 {
		if len(c.packed) == 0 {
			return 0, io.EOF
		}
		block, rest, err := c.nextBlock(c.packed)
		if err != nil {
			return 0, err
		}
		// Other decoders do not know what s2 adds to snappy.
		if c.block, err = snappy.DecodeStrict(c.block[:cap(c.block)], block); err != nil {
			return 0, err
		}
		c.out, c.packed = c.block, rest
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	return n, nil
}

func (c *snappyCodec) drop() { c.packed, c.out = nil, nil }
