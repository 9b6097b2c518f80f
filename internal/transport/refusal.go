package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
)

// direction is one of the two links between this node and a peer. Peer 0 is all who are no peers.
type direction struct {
	peer     NodeID
	incoming bool
}

// refusal is why a link was last refused, by this node or by the peer.
type refusal struct {
	why string
	at  time.Time
	// log bounds how often that is logged.
	log telemetry.Seldom
}

const (
	// sayEvery is how often the log says the same of a link, or of all: what does not work is tried again several times a second.
	sayEvery = time.Minute
	// refusalHolds is how long a refusal counts as present; it is renewed with each attempt.
	refusalHolds = redialMax + 2*handshakeLimit
)

// refused notes a refusal, and logs it unless the same was logged of this peer within sayEvery. Those who are no peers
// count as one, whatever the reason, so that no stranger can fill the log.
func (t *Transport) refused(level slog.Level, d direction, msg, why string, attrs ...any) {
	now := t.env.Now()
	t.mu.Lock()
	r := t.refusals[d]
	if r == nil {
		r = &refusal{}
		t.refusals[d] = r
	}
	r.at = now
	if r.why != why && d.peer != 0 {
		r.log.News()
	}
	r.why = why
	unsaid, say := r.log.Say(now, sayEvery)
	t.mu.Unlock()
	if !say {
		return
	}
	t.log.Log(context.Background(), level, msg, append(attrs, "reason", why, "not_logged", unsaid)...)
}

// accepted forgets a refusal.
func (t *Transport) accepted(d direction) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.refusals, d)
}

// Refused returns why the link with a peer is refused at present, by this node or by the peer; empty if it is not.
func (t *Transport) Refused(peer NodeID) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.env.Now()
	for _, incoming := range []bool{true, false} {
		if r := t.refusals[direction{peer, incoming}]; r != nil && now.Sub(r.at) < refusalHolds {
			return r.why
		}
	}
	return ""
}

// untrusted says whether a link failed since one of its ends does not trust the other's certificate: that does not pass by itself.
func untrusted(err error) bool {
	var own *tls.CertificateVerificationError
	var told *net.OpError
	return errs.Is(err, errs.Denied) || errors.As(err, &own) || errors.As(err, &told) && told.Op == "remote error"
}
