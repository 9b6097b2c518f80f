package eventlog

import (
	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Command numbers. They are in the log: append only, never reused.
const (
	opCreateTopic  = 1
	opPlaceTopic   = 2
	opAppend       = 3
	opEvent        = 4
	opInitProducer = 5
	opJoin         = 6
	opSync         = 7
	opHeartbeat    = 8
	opLeave        = 9
	opCommit       = 10
	opAppendFenced = 11
)

// Query numbers.
const (
	queryTopics  = 1
	queryByName  = 2
	queryByID    = 3
	queryFetch   = 4
	queryOffsets = 5
	queryTime    = 6
	queryJoin    = 7
	querySync    = 8
	queryCommits = 9
	queryGroups  = 10
	queryGroup   = 11

	queryChangeTime = 12
)

// Module is the event log's shard.Module. It has no state.
type Module struct {
	// EncodeFence returns the command of module kv that fails with errs.Fenced unless a token is that of a lock's holder. Without it,
	// appends to topics with a lock are refused.
	EncodeFence func(lock []byte, token int64, home bool) []byte
}

var _ shard.Module = Module{}

// ID implements shard.Module.
func (Module) ID() shard.ModuleID { return shard.ModuleEventlog }

// open checks the version of a command or query and returns its number and its body.
func open(what string, b []byte) (op byte, d dec, err error) {
	if len(b) < 2 {
		return 0, d, errs.New(errs.Invalid, "event log %s of %d bytes", what, len(b))
	}
	if b[0] != version {
		return 0, d, errs.New(errs.Unsupported, "event log %s of version %d; this build knows version %d", what, b[0], version)
	}
	return b[1], dec{codec.Read(b[2:])}, nil
}

// Apply implements shard.Module.
func (m Module) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	op, d, err := open("command", cmd)
	if err != nil {
		return nil, err
	}
	switch op {
	case opEvent:
		return applyEvent(tx, d)
	case opAppend:
		return m.applyAppend(tx, d, false)
	case opAppendFenced:
		return m.applyAppend(tx, d, true)
	case opCreateTopic:
		return applyCreateTopic(tx, d)
	case opPlaceTopic:
		return applyPlaceTopic(tx, d)
	case opInitProducer:
		return applyInitProducer(tx, d)
	case opJoin:
		return applyJoin(tx, d)
	case opSync:
		return applySync(tx, d)
	case opHeartbeat:
		return applyHeartbeat(tx, d)
	case opLeave:
		return applyLeave(tx, d)
	case opCommit:
		return applyCommit(tx, d)
	}
	return nil, errs.New(errs.Unsupported, "event log command %d is not known to this build", op)
}

// Query implements shard.Module.
func (m Module) Query(v shard.View, q []byte) ([]byte, error) {
	op, d, err := open("query", q)
	if err != nil {
		return nil, err
	}
	switch op {
	case queryTopics:
		return answerTopics(v, d)
	case queryByName:
		return answerTopicByName(v, d)
	case queryByID:
		return answerTopicByID(v, d)
	case queryFetch:
		return answerFetch(v, d)
	case queryOffsets:
		return answerOffsets(v, d)
	case queryTime:
		return answerTime(v, d)
	case queryChangeTime:
		return answerChangeTime(v, d)
	case queryJoin:
		return answerJoin(v, d)
	case querySync:
		return answerSync(v, d)
	case queryCommits:
		return answerCommits(v, d)
	case queryGroups:
		return answerGroups(v, d)
	case queryGroup:
		return answerGroup(v, d)
	}
	return nil, errs.New(errs.Unsupported, "event log query %d is not known to this build", op)
}

// Fire implements shard.Module.
func (m Module) Fire(tx *shard.Tx, key []byte) error {
	if len(key) == 0 {
		return errs.New(errs.Internal, "event log timer without a key")
	}
	switch key[0] {
	case timerRetention:
		fireRetention(tx, key)
	case rowProducer:
		fireProducer(tx, key)
	case rowMember:
		fireMember(tx, key)
	case rowPending:
		firePending(tx, key)
	case rowGroup:
		fireGroup(tx, key)
	case timerIdle:
		fireIdle(tx, key)
	default:
		return errs.New(errs.Internal, "event log timer of unknown kind %q", key[0])
	}
	return nil
}
