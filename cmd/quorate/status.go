package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/errs"
)

func newStatus() *cobra.Command {
	var addr string
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show nodes and shards of a running cluster", GroupID: "look", Args: cobra.NoArgs,
		Example: "  quorate status\n  quorate status --http 127.0.0.1:7071 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := fetchStatus(cmd.Context(), addr)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), st)
			}
			return printStatus(cmd.OutOrStdout(), st)
		},
	}
	c.Flags().StringVar(&addr, "http", "127.0.0.1:7070", "HTTP address of any node")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// fetchStatus asks a node for its status.
func fetchStatus(ctx context.Context, addr string) (engine.Status, error) {
	var st engine.Status
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/status", nil)
	if err != nil {
		return st, errs.Wrap(errs.Invalid, err, "address %q", addr)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, errs.New(errs.Unavailable, "no node answered at %s (%v)\n  try: quorate dev            start a local node\n       quorate status --http  another address", addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return st, errs.New(errs.Unavailable, "%s answered %s: %s", addr, resp.Status, b)
	}
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return st, errs.Wrap(errs.Corrupt, err, "%s does not answer like a Quorate node", addr)
	}
	return st, nil
}

func printStatus(w io.Writer, st engine.Status) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "cluster %s, seen from node %d\n\n", st.Cluster, st.Node)
	fmt.Fprintln(t, "NODE\tUP\tREDIS\tKAFKA\tETCD\tHTTP")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%d\t%v\t%s\t%s\t%s\t%s\n", n.ID, n.Up, n.Addr["redis"], n.Addr["kafka"], n.Addr["etcd"], n.Addr["http"])
	}
	for _, n := range st.Nodes {
		if n.Refused != "" {
			fmt.Fprintf(t, "\nnode %d: link REFUSED: %s\n", n.ID, n.Refused)
		}
	}
	fmt.Fprintln(t, "\nSHARD\tLEADER\tTERM\tREVISION\tAPPLIED\tCOMMIT\tLOG\tSTATE")
	for _, s := range st.Shards {
		state := "idle"
		switch {
		case s.Rebuilding:
			state = "rebuilding"
		case s.Leader == 0:
			state = "NO LEADER"
		case s.Awake:
			state = "awake"
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%d-%d\t%s\n", s.ID, s.Leader, s.Term, s.Revision, s.Applied, s.Commit, s.First, s.Last, state)
	}
	return t.Flush()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
