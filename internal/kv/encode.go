package kv

import (
	"encoding/binary"
	"math"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// Commands and queries are
//
//	version(1) request(1) body
//
// with uvarints for numbers, and length and bytes for strings. Booleans of an operation are bits of one byte.
const encodingVersion = 1

// request numbers what is asked; numbers are never reused.
type request uint8

const (
	// reqOp is an operation, a command or, if it is read-only, a query.
	reqOp request = iota + 1
	reqCompact
	reqGrant
	reqRevoke
	reqKeepAlive
	// What follows is asked by queries only.
	reqStatus
	reqEvents
	reqTimeToLive
	reqLeases
	reqHash
)

// reqLoad is a command; commands that came later count from here.
const reqLoad request = 32

func head(r request) []byte { return append(make([]byte, 0, 64), encodingVersion, byte(r)) }

func errMalformed() error { return errs.New(errs.Corrupt, "malformed kv request") }

// EncodeOp returns the command of an operation, or the query if it is read-only.
func EncodeOp(o Op) []byte { return appendOp(head(reqOp), o) }

// AppendOp is EncodeOp behind what is in b.
func AppendOp(b []byte, o Op) []byte { return appendOp(append(b, encodingVersion, byte(reqOp)), o) }

const (
	flagKeysOnly = 1 << iota
	flagCountOnly
	flagFilters
)

const (
	flagWantPrev = 1 << iota
	flagKeepValue
	flagKeepLease
)

func appendOp(b []byte, o Op) []byte {
	switch o := o.(type) {
	case *Range:
		flags := byte(0)
		filters := o.filtered()
		for i, set := range [...]bool{o.KeysOnly, o.CountOnly, filters} {
			if set {
				flags |= 1 << i
			}
		}
		b = append(b, byte(OpRange), flags, byte(o.Target), byte(o.Order))
		b = codec.AppendBytes(codec.AppendBytes(b, o.Key), o.End)
		b = appendInt(appendInt(b, o.Limit), o.Revision)
		if filters {
			b = appendInt(appendInt(appendInt(appendInt(b, o.MinMod), o.MaxMod), o.MinCreate), o.MaxCreate)
		}
	case *Put:
		flags := byte(0)
		for i, set := range [...]bool{o.WantPrev, o.KeepValue, o.KeepLease} {
			if set {
				flags |= 1 << i
			}
		}
		b = append(b, byte(OpPut), flags)
		b = appendInt(codec.AppendBytes(codec.AppendBytes(b, o.Key), o.Value), o.Lease)
	case *Delete:
		flags := byte(0)
		if o.WantPrev {
			flags = flagWantPrev
		}
		b = append(b, byte(OpDelete), flags)
		b = codec.AppendBytes(codec.AppendBytes(b, o.Key), o.End)
	case *Txn:
		b = binary.AppendUvarint(append(b, byte(OpTxn)), uint64(len(o.If)))
		for i := range o.If {
			c := &o.If[i]
			b = append(b, byte(c.Target), byte(c.Relation))
			b = codec.AppendBytes(codec.AppendBytes(b, c.Key), c.End)
			if c.Target == Value {
				b = codec.AppendBytes(b, c.Value)
			} else {
				b = appendInt(b, c.Number)
			}
		}
		for _, ops := range [...][]Op{o.Then, o.Else} {
			b = binary.AppendUvarint(b, uint64(len(ops)))
			for _, o := range ops {
				b = appendOp(b, o)
			}
		}
	}
	return b
}

// appendInt adds a signed number, of which most are small and none negative.
func appendInt(b []byte, v int64) []byte { return binary.AppendUvarint(b, uint64(v)) }

// decoder is a codec.Reader of requests, answers and rows.
type decoder struct{ codec.Reader }

func (d *decoder) int() int64 { return int64(d.Uvarint()) }

// end returns an error if anything was missing, or is left.
func (d *decoder) end() error {
	if !d.Done() {
		return errMalformed()
	}
	return nil
}

func (d *decoder) op(depth int) Op {
	switch kind := OpKind(d.Byte()); kind {
	case OpRange:
		o := &Range{}
		flags := d.Byte()
		o.KeysOnly, o.CountOnly = flags&flagKeysOnly != 0, flags&flagCountOnly != 0
		o.Target, o.Order = SortTarget(d.Byte()), SortOrder(d.Byte())
		if o.Target > ByValue || o.Order > Descending {
			d.Fail()
		}
		o.Key, o.End = d.Bytes(), d.Bytes()
		o.Limit, o.Revision = d.int(), d.int()
		if flags&flagFilters != 0 {
			o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate = d.int(), d.int(), d.int(), d.int()
		}
		return o
	case OpPut:
		o := &Put{}
		flags := d.Byte()
		o.WantPrev, o.KeepValue, o.KeepLease = flags&flagWantPrev != 0, flags&flagKeepValue != 0, flags&flagKeepLease != 0
		o.Key, o.Value, o.Lease = d.Bytes(), d.Bytes(), d.int()
		return o
	case OpDelete:
		o := &Delete{WantPrev: d.Byte()&flagWantPrev != 0}
		o.Key, o.End = d.Bytes(), d.Bytes()
		return o
	case OpTxn:
		if depth == DepthMax {
			d.Fail()
			return nil
		}
		o := &Txn{}
		if n := d.Count(5); n > 0 {
			o.If = make([]Compare, n)
		}
		for i := range o.If {
			c := &o.If[i]
			c.Target, c.Relation = CompareTarget(d.Byte()), Relation(d.Byte())
			if c.Target > Lease || c.Relation > NotEqual {
				d.Fail()
			}
			c.Key, c.End = d.Bytes(), d.Bytes()
			if c.Target == Value {
				c.Value = d.Bytes()
			} else {
				c.Number = d.int()
			}
		}
		for _, ops := range [...]*[]Op{&o.Then, &o.Else} {
			for n := d.Count(3); n > 0 && !d.Bad(); n-- {
				*ops = append(*ops, d.op(depth+1))
			}
		}
		return o
	}
	d.Fail()
	return nil
}

// appendAnswer adds an answer in the form that DecodeAnswer reads.
func appendAnswer(b []byte, a *Answer) []byte {
	b = appendInt(append(b, byte(a.Op)), a.Revision)
	switch a.Op {
	case OpRange:
		b = codec.AppendBool(b, a.More)
		b = appendKVs(appendInt(b, a.Count), a.KVs)
	case OpPut:
		b = appendKVs(b, a.KVs)
	case OpDelete:
		b = appendKVs(appendInt(b, a.Count), a.KVs)
	case OpTxn:
		b = binary.AppendUvarint(codec.AppendBool(b, a.Succeeded), uint64(len(a.Answers)))
		for i := range a.Answers {
			b = appendAnswer(b, &a.Answers[i])
		}
	}
	return b
}

func appendKVs(b []byte, kvs []KeyValue) []byte {
	b = binary.AppendUvarint(b, uint64(len(kvs)))
	for i := range kvs {
		b = appendKV(b, &kvs[i])
	}
	return b
}

func appendKV(b []byte, kv *KeyValue) []byte {
	b = appendInt(appendInt(appendInt(appendInt(b, kv.Create), kv.Mod), kv.Version), kv.Lease)
	return codec.AppendBytes(codec.AppendBytes(b, kv.Key), kv.Value)
}

// DecodeAnswer reads the answer to a command or query made with EncodeOp. Its slices are parts of b.
func DecodeAnswer(b []byte) (Answer, error) {
	d := decoder{codec.Read(b)}
	a := d.answer(0)
	return a, d.end()
}

func (d *decoder) answer(depth int) Answer {
	a := Answer{Op: OpKind(d.Byte()), Revision: d.int()}
	switch a.Op {
	case OpRange:
		a.More, a.Count = d.Bool(), d.int()
		a.KVs = d.kvs()
	case OpPut:
		a.KVs = d.kvs()
	case OpDelete:
		a.Count = d.int()
		a.KVs = d.kvs()
	case OpTxn:
		if depth == DepthMax {
			d.Fail()
			return a
		}
		a.Succeeded = d.Bool()
		if n := d.Count(3); n > 0 {
			a.Answers = make([]Answer, 0, n)
			for ; n > 0 && !d.Bad(); n-- {
				a.Answers = append(a.Answers, d.answer(depth+1))
			}
		}
	default:
		d.Fail()
	}
	return a
}

func (d *decoder) kvs() []KeyValue {
	n := d.Count(6)
	if n == 0 {
		return nil
	}
	kvs := make([]KeyValue, n)
	for i := range kvs {
		d.kv(&kvs[i])
	}
	return kvs
}

func (d *decoder) kv(kv *KeyValue) {
	kv.Create, kv.Mod, kv.Version, kv.Lease = d.int(), d.int(), d.int(), d.int()
	kv.Key, kv.Value = d.Bytes(), d.Bytes()
}

// maxRevision is no revision: it comes after all.
const maxRevision = math.MaxInt64
