package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/env"
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
				return printJSON(cmd.OutOrStdout(), struct {
					APIVersion string `json:"apiVersion"`
					engine.Status
				}{apiVersion, st})
			}
			return printStatus(cmd.OutOrStdout(), st)
		},
	}
	c.Flags().StringVar(&addr, "http", "127.0.0.1:7070", "HTTP address of any node, host:port or unix:PATH")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// fetchStatus asks a node for its status.
func fetchStatus(ctx context.Context, addr string) (engine.Status, error) {
	var st engine.Status
	client, at, err := nodeAddr(addr)
	if err != nil {
		return st, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/status", nil)
	if err != nil {
		return st, errs.Wrap(errs.Invalid, err, "address %q", addr)
	}
	resp, err := client.Do(req)
	if err != nil {
		return st, errs.New(errs.Unavailable, "no node answered at %s (%v)\n  try: quorate dev                           start a local node\n       quorate status --http ADDRESS         ask another one", addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return st, errs.New(errs.Unavailable, "%s answered %s", addr, strings.TrimSuffix(resp.Status+": "+string(bytes.TrimSpace(b)), ": "))
	}
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return st, errs.Wrap(errs.Corrupt, err, "%s does not answer like a Quorate node", addr)
	}
	if st.Cluster == "" {
		return st, errs.New(errs.Corrupt, "%s does not answer like a Quorate node: it names no cluster", addr)
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

// isTerminal says whether f is a terminal on which lines can be cleared. One that nobody has named may be any.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	term := os.Getenv("TERM")
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && term != "" && term != "dumb"
}

// showLine writes a line of progress over the one before. A terminal that is too narrow for it cuts it: what it would go on with in the next
// row stayed there.
func showLine(w io.Writer, line string) { fmt.Fprintf(w, "\r\033[K\033[?7l%s\033[?7h", line) } //nolint:errcheck // progress

// clearLine clears a line of progress.
func clearLine(w io.Writer) { fmt.Fprint(w, "\r\033[K") } //nolint:errcheck // progress

// nodeAddr checks the address of a node's HTTP port, and returns a client that calls it and the URL to begin with.
func nodeAddr(addr string) (*http.Client, string, error) {
	if path, ok := strings.CutPrefix(addr, env.SocketPrefix); ok && path != "" {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
		return &http.Client{Transport: &http.Transport{DialContext: dial}}, "http://localhost", nil
	}
	if err := checkAddr("--http", addr); err != nil {
		return nil, "", err
	}
	// Nodes are asked directly, whatever HTTP_PROXY says: a proxy may not reach them, and is no one's business.
	return &http.Client{Transport: &http.Transport{}}, "http://" + addr, nil
}

// usualPorts are those of flags that give an address, for examples.
var usualPorts = map[string]string{"--redis": "6379", "--kafka": "9092", "--etcd": "2379", "--http": "7070"}

// checkAddr checks an address that a flag gives.
func checkAddr(flag, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" || strings.Contains(addr, "/") {
		return errs.New(errs.Invalid, "%s is %q; write host:port, such as 127.0.0.1:%s", flag, addr, usualPorts[flag])
	}
	if _, err := net.DefaultResolver.LookupPort(context.Background(), "tcp", port); err != nil {
		return errs.New(errs.Invalid, "%s is %q; a port is 0 to 65535, or has a name that this system knows", flag, addr)
	}
	return nil
}
