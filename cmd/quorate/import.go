package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/server"
	"github.com/quorate/quorate/internal/shard"
)

func newImport() *cobra.Command {
	c := &cobra.Command{Use: "import", Short: "Bring data from other systems into a new cluster", GroupID: "run", Args: cobra.NoArgs}
	c.AddCommand(newImportEtcd())
	return c
}

func newImportEtcd() *cobra.Command {
	var addr, space string
	var asJSON bool
	c := &cobra.Command{
		Use: "etcd-snapshot FILE", Short: "Load a snapshot of etcd", Args: cobra.ExactArgs(1),
		Long: `Loads the keys, leases, users and roles of a snapshot ("etcdctl snapshot save", or member/snap/db of a stopped member) into a cluster whose etcd
key space is new. Keys keep their revisions, versions and leases; the key space goes on from the snapshot's revision, and history before it counts as
compacted. Leases begin anew. Users keep their passwords, and authentication is enabled at the end if it was. Let clients in when it is done.

If it is interrupted, run it again with the same file.`,
		Example: "  etcdctl --endpoints old:2379 snapshot save old.db\n  quorate import etcd-snapshot old.db --http 127.0.0.1:7070",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, at, err := nodeAddr(addr)
			if err != nil {
				return err
			}
			l := loader{ctx: cmd.Context(), client: client, url: at + "/etcd/load?space=" + url.QueryEscape(space), show: isTerminal(os.Stderr)}
			l.tell = func(text string) {
				if !asJSON {
					l.clear()
					fmt.Fprintln(cmd.ErrOrStderr(), text) //nolint:errcheck // standard error
				}
			}
			began := time.Now()
			found, err := etcd.ReadSnapshot(args[0], l.part)
			l.clear()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{
					"apiVersion": apiVersion, "keys": int64(found.Keys), "leases": int64(found.Leases), "revision": found.Revision,
					"users": int64(found.Users), "roles": int64(found.Roles), "auth_enabled": found.AuthEnabled,
				})
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "loaded %d keys and %d leases in %.1f s; the key space goes on from revision %d\n", found.Keys, found.Leases, time.Since(began).Seconds(), found.Revision) //nolint:errcheck // standard output
			if found.Users+found.Roles > 0 {
				enabled := "not enabled"
				if found.AuthEnabled {
					enabled = "enabled"
				}
				fmt.Fprintf(out, "with them %d users and %d roles; authentication is %s\n", found.Users, found.Roles, enabled) //nolint:errcheck // standard output
			}
			return nil
		},
	}
	c.Flags().StringVar(&addr, "http", "127.0.0.1:7070", "HTTP address of any node, host:port or unix:PATH")
	c.Flags().StringVar(&space, "space", shard.DefaultSpace, "space to load into")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// loader sends the parts of a load to a node.
type loader struct {
	ctx    context.Context
	client *http.Client
	url    string
	show   bool
	keys   int
	shown  time.Time
	// tell says what the user should know at once.
	tell func(text string)
}

// errImportStopped is what becomes of an import that Ctrl-C ends.
var errImportStopped = exitError{code: exitInterrupted, msg: "interrupted: not everything is loaded; run it again with the same file, before clients come"}

// loadPatience is how long a part is tried for: a leader may be elected meanwhile.
const loadPatience = time.Minute

func (l *loader) part(p *etcd.Part) error {
	b := p.Encode()
	wait, told := 50*time.Millisecond, false
	for end := time.Now().Add(loadPatience); ; {
		err := l.send(b)
		again := errs.Is(err, errs.OutcomeUnknown) || errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Overloaded)
		if err == nil {
			break
		}
		if l.ctx.Err() != nil {
			return errImportStopped
		}
		if !again || time.Now().After(end) {
			return err
		}
		if !told {
			// The address may be wrong.
			text, _, _ := strings.Cut(err.Error(), "\n")
			l.tell(fmt.Sprintf("%s; it is tried for %v more, Ctrl-C ends it", text, time.Until(end).Round(time.Second)))
			told = true
		}
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
			return errImportStopped
		}
		wait = min(2*wait, 2*time.Second)
	}
	l.keys += len(p.Keys.KVs)
	if l.show && time.Since(l.shown) > 200*time.Millisecond {
		l.shown = time.Now()
		showLine(os.Stderr, fmt.Sprintf("%d keys", l.keys))
	}
	return nil
}

func (l *loader) clear() {
	if l.show && !l.shown.IsZero() {
		clearLine(os.Stderr)
	}
}

// send sends a part once.
func (l *loader) send(b []byte) error {
	ctx, cancel := context.WithTimeout(l.ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(b))
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "address of the node")
	}
	req.Header.Set("Content-Type", server.LoadType)
	resp, err := l.client.Do(req)
	if err != nil {
		return errs.New(errs.Unavailable, "no node answers at %s (%v)\n  try: quorate status --http ADDRESS", l.url, err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if resp.StatusCode == http.StatusNoContent {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	kind, ok := errs.ParseKind(resp.Header.Get("Quorate-Error"))
	if !ok {
		return errs.New(errs.Invalid, "%s answers like no Quorate node: %s", l.url, resp.Status)
	}
	return errs.New(kind, "%s", strings.TrimSpace(string(text)))
}
