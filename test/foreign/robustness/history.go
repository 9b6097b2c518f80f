package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"go.etcd.io/etcd/tests/v3/robustness/model"
)

// step is a line of quorate kv-log.
type step struct {
	Range *struct{ Key, End []byte }
	Put   *struct {
		Key, Value           []byte
		Lease                int64
		KeepValue, KeepLease bool
	}
	Delete *struct{ Key, End []byte }
	Txn    *struct {
		If []struct {
			Key, End         []byte
			Relation, Target int
			Number           int64
		}
		Then, Else []step
	}
	Compact, Grant, Revoke int64
}

// The numbers of comparisons, which are etcd's.
const (
	relationEqual = 0
	targetVersion = 0
	targetMod     = 2
)

// history returns what the stopped nodes have applied, in order, up to the first write of settle. What one node knows to be committed must
// begin with what another does.
func (c *cluster) history() ([]model.EtcdRequest, error) {
	var longest []byte
	for _, n := range c.nodes {
		var stderr bytes.Buffer
		cmd := exec.Command(c.program, "kv-log", n.dir)
		cmd.Stderr = &stderr
		b, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("log of node %s: %w: %s", n.name, err, stderr.String())
		}
		short := b
		if len(b) > len(longest) {
			short, longest = longest, b
		}
		if !bytes.HasPrefix(longest, short) {
			return nil, fmt.Errorf("node %s has applied something else than the nodes before it", n.name)
		}
	}
	var all []model.EtcdRequest
	d := json.NewDecoder(bytes.NewReader(longest))
	for {
		var s step
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			return nil, errors.New("no node knows that all of the traffic is committed")
		} else if err != nil {
			return nil, err
		}
		if s.Put != nil && string(s.Put.Key) == settleKey {
			return all, nil
		}
		r, err := s.request()
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
}

// request translates a step to the model's terms. The model knows only what the traffic does.
func (s *step) request() (model.EtcdRequest, error) {
	switch {
	case s.Compact != 0:
		return model.EtcdRequest{Type: model.Compact, Compact: &model.CompactRequest{Revision: s.Compact}}, nil
	case s.Grant != 0:
		return model.EtcdRequest{Type: model.LeaseGrant, LeaseGrant: &model.LeaseGrantRequest{LeaseID: s.Grant}}, nil
	case s.Revoke != 0:
		return model.EtcdRequest{Type: model.LeaseRevoke, LeaseRevoke: &model.LeaseRevokeRequest{LeaseID: s.Revoke}}, nil
	case s.Txn == nil:
		op, err := s.operation()
		return model.EtcdRequest{Type: model.Txn, Txn: &model.TxnRequest{OperationsOnSuccess: []model.EtcdOperation{op}}}, err
	}
	t := &model.TxnRequest{}
	for _, c := range s.Txn.If {
		cond := model.EtcdCondition{Key: string(c.Key)}
		switch {
		case c.Relation != relationEqual || len(c.End) > 0:
			return model.EtcdRequest{}, fmt.Errorf("the model has no condition like %+v", c)
		case c.Target == targetVersion:
			cond.ExpectedVersion = c.Number
		case c.Target == targetMod:
			cond.ExpectedRevision = c.Number
		default:
			return model.EtcdRequest{}, fmt.Errorf("the model has no condition like %+v", c)
		}
		t.Conditions = append(t.Conditions, cond)
	}
	for _, part := range []struct {
		from []step
		to   *[]model.EtcdOperation
	}{{s.Txn.Then, &t.OperationsOnSuccess}, {s.Txn.Else, &t.OperationsOnFailure}} {
		for i := range part.from {
			op, err := part.from[i].operation()
			if err != nil {
				return model.EtcdRequest{}, err
			}
			*part.to = append(*part.to, op)
		}
	}
	return model.EtcdRequest{Type: model.Txn, Txn: t}, nil
}

func (s *step) operation() (model.EtcdOperation, error) {
	switch {
	case s.Put != nil && !s.Put.KeepValue && !s.Put.KeepLease:
		return model.EtcdOperation{Type: model.PutOperation, Put: model.PutOptions{
			Key: string(s.Put.Key), Value: model.ToValueOrHash(string(s.Put.Value)), LeaseID: s.Put.Lease,
		}}, nil
	case s.Delete != nil && len(s.Delete.End) == 0:
		return model.EtcdOperation{Type: model.DeleteOperation, Delete: model.DeleteOptions{Key: string(s.Delete.Key)}}, nil
	case s.Range != nil:
		return model.EtcdOperation{Type: model.RangeOperation, Range: model.RangeOptions{Start: string(s.Range.Key), End: string(s.Range.End)}}, nil
	}
	return model.EtcdOperation{}, fmt.Errorf("the model has no operation like %+v", s)
}
