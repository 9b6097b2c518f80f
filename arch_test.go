// Package quorate_test holds the rules of the repository as tests: which package may import what, and how code and
// documents are kept. They read files and run nothing, so that the test cache sees what they depend on.
package quorate_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/quorate/quorate"

// floors lists every package, lowest first. A package may import only packages on earlier lines; those on one line do not
// see each other.
var floors = [][]string{
	{"internal/errs"},
	{"internal/env", "internal/codec"},
	{"internal/telemetry"},
	{"internal/storage", "internal/transport"},
	{"internal/shard"},
	{"internal/shardtest", "internal/replica"},
	{"internal/datatypes", "internal/eventlog", "internal/kv", "internal/auth", "internal/protocol/conns"},
	{"internal/engine", "internal/coord", "internal/protocol/rpc"},
	{"internal/protocol/redis", "internal/protocol/kafka", "internal/protocol/etcd"},
	{"internal/server"},
	{"internal/sim"},
	{"internal/bench", "internal/drill"},
	{"cmd/quorate", "bench/restart"},
}

// notSeen are imports that the floors allow and that are refused all the same.
var notSeen = []struct{ from, to, why string }{
	{"internal/datatypes", "internal/replica", "models see the waist, not how it is replicated"},
	{"internal/eventlog", "internal/replica", "models see the waist, not how it is replicated"},
	{"internal/kv", "internal/replica", "models see the waist, not how it is replicated"},
	{"internal/auth", "internal/replica", "models see the waist, not how it is replicated"},
	{"internal/auth", "internal/storage", "models write through Tx"},
	{"internal/engine", "internal/auth", "the engine runs any module; server names them"},
	{"internal/coord", "internal/auth", "it sees shard.Client, under whatever rights"},
	{"internal/datatypes", "internal/storage", "models write through Tx"},
	{"internal/kv", "internal/storage", "models write through Tx"},
	{"internal/eventlog", "internal/storage", "models write through Tx"},
	{"internal/engine", "internal/datatypes", "the engine runs any module; server names them"},
	{"internal/engine", "internal/kv", "the engine runs any module; server names them"},
	{"internal/engine", "internal/eventlog", "the engine runs any module; server names them"},
	{"internal/protocol/redis", "internal/engine", "protocols see shard.Client"},
	{"internal/protocol/kafka", "internal/engine", "protocols see shard.Client"},
	{"internal/coord", "internal/replica", "it sees shard.Client"},
	{"internal/coord", "internal/datatypes", "locks are made of kv's keys"},
	{"internal/coord", "internal/eventlog", "locks are made of kv's keys"},
	{"internal/protocol/rpc", "internal/shard", "it carries calls, whatever they are"},
	{"internal/protocol/etcd", "internal/engine", "protocols see shard.Client"},
	{"internal/protocol/etcd", "internal/replica", "protocols see shard.Client"},
	{"internal/protocol/etcd", "internal/storage", "protocols see shard.Client"},
	{"internal/protocol/etcd", "internal/datatypes", "an etcd server needs no Redis data"},
	{"internal/protocol/etcd", "internal/eventlog", "an etcd server needs no topics"},
	{"internal/protocol/redis", "internal/replica", "protocols see shard.Client"},
	{"internal/protocol/kafka", "internal/replica", "protocols see shard.Client"},
	{"internal/protocol/redis", "internal/storage", "protocols see shard.Client"},
	{"internal/protocol/kafka", "internal/storage", "protocols see shard.Client"},
	{"internal/protocol/redis", "internal/eventlog", "events reach the log through server.modules, so that the models stay strangers"},
	{"internal/protocol/kafka", "internal/datatypes", "a Kafka server needs no Redis data"},
	{"internal/sim", "internal/engine", "the simulation drives replica.Host itself, on one goroutine"},
	{"internal/sim", "internal/server", "the simulation drives replica.Host itself, on one goroutine"},
	{"internal/bench", "internal/server", "load comes from outside, over the wire"},
	{"internal/drill", "internal/server", "drills drive processes from outside"},
	{"internal/drill", "internal/replica", "drills drive processes from outside"},
}

// libraries says which packages may import which other modules, by the longest prefix that fits. Everything else is refused.
var libraries = []struct {
	path string
	by   []string
	why  string
}{
	{"github.com/KimMachineGun/automemlimit", []string{"internal/server"}, "the limit of memory of a control group"},
	{"github.com/cespare/xxhash/v2", []string{"internal/shard", "internal/replica", "internal/datatypes", "internal/sim"}, "digests and checksums that are not on disk"},
	{"github.com/cockroachdb/pebble/v2", []string{"internal/storage"}, "the state store"},
	{"github.com/cockroachdb/pebble/v2/vfs", []string{"internal/storage", "internal/sim", "internal/engine", "internal/shard", "internal/replica"}, "the simulation makes disks, and tests of the engine and of shards ones that hang, of replicas ones that count"},
	{"go.etcd.io/raft/v3", []string{"internal/replica"}, "consensus"},
	{"go.etcd.io/bbolt", []string{"internal/protocol/etcd"}, "snapshots in the format of etcd's store"},
	{"github.com/golang-jwt/jwt/v5", []string{"internal/protocol/etcd"}, "tokens of etcd's users that others sign or read"},
	{"golang.org/x/crypto/bcrypt", []string{"internal/protocol/etcd"}, "passwords of etcd's users, at the edge"},
	{"google.golang.org/protobuf", []string{"internal/replica", "internal/protocol/etcd", "internal/protocol/rpc"}, "raft's configuration changes; etcd's messages"},
	{"go.etcd.io/etcd/api/v3", []string{"internal/protocol/etcd", "internal/drill"}, "etcd's messages and error texts; drills use its stubs"},
	{"google.golang.org/grpc", []string{"internal/protocol/etcd", "internal/protocol/rpc", "internal/drill"}, "etcd's API: generated code, statuses, clients"},
	{"golang.org/x/net/http2", []string{"internal/protocol/rpc"}, "HTTP/2's numbers, and header compression"},
	{"github.com/grpc-ecosystem/grpc-gateway/v2", []string{"internal/protocol/etcd"}, "the JSON form of etcd's API"},
	{"github.com/twmb/franz-go/pkg/kmsg", []string{"internal/protocol/kafka", "internal/drill"}, "Kafka's messages; the shop asks for end offsets"},
	{"github.com/twmb/franz-go", []string{"internal/drill"}, "drills and demo use stock clients"},
	{"github.com/redis/go-redis/v9", []string{"internal/drill"}, "drills and demo use stock clients"},
	{"github.com/klauspost/compress", []string{"internal/protocol/kafka"}, "gzip, snappy and zstd in record batches"},
	{"github.com/pierrec/lz4/v4", []string{"internal/protocol/kafka"}, "lz4 in record batches"},
	{"github.com/prometheus/client_golang", []string{"internal/engine", "internal/protocol/redis", "internal/protocol/kafka", "internal/protocol/etcd", "internal/server"}, "metrics, on the registerer that is passed in"},
	{"github.com/prometheus/client_model", []string{"internal/protocol/redis", "internal/protocol/etcd"}, "tests read metrics; etcd's names for them"},
	{"github.com/spf13/cobra", []string{"cmd/quorate"}, "the command line"},
	{"github.com/spf13/pflag", []string{"cmd/quorate"}, "cobra's flags"},
	{"go.yaml.in/yaml/v3", []string{"internal/server"}, "the configuration file"},
	{"github.com/anishathalye/porcupine", []string{"internal/drill", "internal/sim"}, "linearizability"},
}

// otherModules are folders with a go.mod of their own, so that users of Quorate inherit none of what they require.
var otherModules = []string{"bench/etcd", "bench/peers", "test", "test/foreign", "tools"}

// source is a parsed Go file.
type source struct {
	path string
	dir  string
	test bool
	file *ast.File
	fset *token.FileSet
}

// parsed holds all Go files of the main module; they are read once.
var parsed = sync.OnceValues(func() ([]source, error) {
	names, err := list(".go")
	if err != nil {
		return nil, err
	}
	var all []source
	fset := token.NewFileSet()
	for _, p := range names {
		if slices.ContainsFunc(otherModules, func(m string) bool { return strings.HasPrefix(p, m+"/") }) {
			continue
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(fset, p, b, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		all = append(all, source{p, path.Dir(p), strings.HasSuffix(p, "_test.go"), f, fset})
	}
	return all, nil
})

// sources returns all Go files of the main module.
func sources(t *testing.T) []source {
	t.Helper()
	all, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("found only %d Go files; is this the root of the repository?", len(all))
	}
	return all
}

// tracked returns the files that belong to the repository and end as one of the given names do.
func tracked(t *testing.T, ends ...string) []string {
	t.Helper()
	all, err := list(ends...)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func list(ends ...string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (p == ".git" || p == "bin" || d.Name() == "fuzz"):
			return fs.SkipDir
		case !d.IsDir() && slices.ContainsFunc(ends, func(e string) bool { return strings.HasSuffix(p, e) }):
			all = append(all, filepath.ToSlash(p))
		}
		return nil
	})
	return all, err
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// imports calls f for each import of a file.
func (s source) imports(f func(path string)) {
	for _, i := range s.file.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			f(p)
		}
	}
}

func floorOf(pkg string) int {
	return slices.IndexFunc(floors, func(line []string) bool { return slices.Contains(line, pkg) })
}

func TestFloors_ArePassedDownwardsOnly(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "." {
			continue
		}
		at := floorOf(s.dir)
		if at < 0 {
			t.Errorf("%s: package %s has no floor; add it to the table in arch_test.go", s.path, s.dir)
			continue
		}
		s.imports(func(p string) {
			to, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				return
			}
			// The tests of a package may use shardtest from where its floor allows it to be.
			if floorOf(to) >= at {
				t.Errorf("%s imports %s, which is not on an earlier line", s.path, to)
			}
			for _, n := range notSeen {
				if n.from == s.dir && n.to == to && !s.test {
					t.Errorf("%s imports %s: %s", s.path, to, n.why)
				}
			}
		})
	}
}

func TestLibraries_HaveOnePlace(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		s.imports(func(p string) {
			first, _, _ := strings.Cut(p, "/")
			if !strings.Contains(first, ".") || strings.HasPrefix(p, module+"/") {
				return
			}
			best := -1
			for i, l := range libraries {
				if (p == l.path || strings.HasPrefix(p, l.path+"/")) && (best < 0 || len(l.path) > len(libraries[best].path)) {
					best = i
				}
			}
			if best < 0 {
				t.Errorf("%s imports %s, which is not in the table of libraries in arch_test.go", s.path, p)
				return
			}
			used[libraries[best].path] = true
			if !slices.Contains(libraries[best].by, s.dir) {
				t.Errorf("%s imports %s, which only %v may (%s)", s.path, p, libraries[best].by, libraries[best].why)
			}
		})
	}
}

func TestPackages_AreOneLevelDeep(t *testing.T) {
	for _, s := range sources(t) {
		parts := strings.Split(s.dir, "/")
		deep := 2
		if strings.HasPrefix(s.dir, "internal/protocol/") {
			deep = 3
		}
		if parts[0] == "internal" && len(parts) > deep {
			t.Errorf("%s lies too deep", s.path)
		}
		for _, bad := range []string{"util", "utils", "common", "base", "types", "helpers", "misc"} {
			if parts[len(parts)-1] == bad {
				t.Errorf("%s: a package is a noun for what it provides, not %q", s.path, bad)
			}
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: init(); make a list in one visible place instead", s.fset.Position(f.Pos()))
			}
		}
	}
}

func TestCore_HasNoGoroutineLockOrClock(t *testing.T) {
	core := []string{"internal/replica", "internal/shard", "internal/datatypes", "internal/eventlog", "internal/kv", "internal/auth"}
	locks := map[string]string{
		"internal/shard/hub.go":        "Hub sits beside the machine and is called from everywhere",
		"internal/datatypes/module.go": "a pool of scratch space for queries, which run at the same time",
	}
	for _, s := range sources(t) {
		if !slices.Contains(core, s.dir) || s.test {
			continue
		}
		s.imports(func(p string) {
			if p == "sync" && locks[s.path] == "" || p == "os" || p == "net" || p == "log/slog" || p == "math/rand" || p == "math/rand/v2" {
				t.Errorf("%s imports %s; the core has no lock, file, socket or randomness of its own", s.path, p)
			}
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine; the core has none", s.fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker", "AfterFunc"}, n.Sel.Name) {
					t.Errorf("%s uses time.%s; the core is handed the time", s.fset.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

// A time that was made a number has lost its monotonic part, and with two of them a clock that is set counts as time that passes.
func TestEdges_CountByTheMonotonicClock(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !strings.HasPrefix(s.dir, "internal/") || s.dir == "internal/drill" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			of, ok := n.(*ast.SelectorExpr)
			if !ok || !strings.HasPrefix(of.Sel.Name, "Unix") && of.Sel.Name != "Round" {
				return true
			}
			if call, ok := of.X.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Now" {
					if x, ok := f.X.(*ast.Ident); ok && x.Name == "time" {
						t.Errorf("%s: time.Now().%s; keep the time, or say how long it is since another", s.fset.Position(n.Pos()), of.Sel.Name)
					}
				}
			}
			return true
		})
	}
}

func TestGoMod_ReplacesNothing(t *testing.T) {
	for _, dir := range append([]string{"."}, otherModules...) {
		name := path.Join(dir, "go.mod")
		for line := range strings.Lines(string(read(t, name))) {
			if w := strings.Fields(line); len(w) > 0 && w[0] == "replace" {
				t.Errorf("%s: %s", name, strings.TrimSpace(line))
			}
		}
	}
}
