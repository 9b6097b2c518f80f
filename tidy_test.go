package quorate_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write golden files instead of comparing them")

// golden compares a text with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := string(read(t, name))
	if got == want {
		return
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			t.Errorf("%s: gone: %s", name, l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			t.Errorf("%s: new: %s", name, l)
		}
	}
	t.Errorf("%s is not what the code says; run go test . -rewrite, and read the diff", name)
}

func TestPackages_HaveOneComment(t *testing.T) {
	comments := map[string]int{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if s.file.Doc != nil {
			comments[s.dir]++
			if text := s.file.Doc.Text(); !strings.HasPrefix(text, "Package ") && !strings.HasPrefix(text, "Command ") {
				t.Errorf("%s: the package comment begins with %.20q", s.path, text)
			}
		} else {
			comments[s.dir] += 0
		}
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", dir, n)
		}
	}
}

// exempt are methods whose contract is that of a well-known interface.
var exempt = []string{"Len", "Less", "Swap", "String", "Error", "Unwrap", "Write", "Read", "ReadAt", "WriteAt", "Sync", "Close", "Serve"}

func TestExportedNames_HaveComments(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		missing := func(p token.Pos, name string) { t.Errorf("%s: %s has no comment", s.fset.Position(p), name) }
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if !d.Name.IsExported() || d.Doc != nil {
					continue
				}
				if d.Recv != nil && (!ast.IsExported(receiver(d)) || slices.Contains(exempt, d.Name.Name)) {
					continue
				}
				missing(d.Pos(), d.Name.Name)
			case *ast.GenDecl:
				for _, sp := range d.Specs {
					switch sp := sp.(type) {
					case *ast.TypeSpec:
						if sp.Name.IsExported() && sp.Doc == nil && d.Doc == nil {
							missing(sp.Pos(), sp.Name.Name)
						}
					case *ast.ValueSpec:
						// One comment may speak for a group.
						if sp.Names[0].IsExported() && sp.Doc == nil && sp.Comment == nil && d.Doc == nil {
							missing(sp.Pos(), sp.Names[0].Name)
						}
					}
				}
			}
		}
	}
}

func receiver(d *ast.FuncDecl) string {
	x := d.Recv.List[0].Type
	if s, ok := x.(*ast.StarExpr); ok {
		x = s.X
	}
	if id, ok := x.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// text are the endings of the files that people read.
var text = []string{".go", ".md", ".sh", ".yml", ".yaml", ".mod", "Makefile", ".ci/run"}

func TestText_HoldsNothingUnfinishedOrLocal(t *testing.T) {
	// The words are put together here, so that this file does not hold them.
	unfinished := regexp.MustCompile(`\bFIX` + `ME\b`)
	todo := regexp.MustCompile(`\bTO` + `DO\b(\(#\d+\))?`)
	local := regexp.MustCompile(`(^|[\s"'(=:])/(wo` + `rk|ro` + `ot|ho` + `me)(/|\b)`)
	for _, p := range tracked(t, text...) {
		for i, line := range strings.Split(string(read(t, p)), "\n") {
			// The style guide names the words that it forbids.
			if unfinished.MatchString(line) && p != "STYLE.md" {
				t.Errorf("%s:%d: unfinished: %s", p, i+1, strings.TrimSpace(line))
			}
			for _, m := range todo.FindAllStringSubmatch(line, -1) {
				if m[1] == "" && strings.HasSuffix(p, ".go") {
					t.Errorf("%s:%d: name the issue, as in (#12): %s", p, i+1, strings.TrimSpace(line))
				}
			}
			if strings.Contains(line, "/") && local.MatchString(line) {
				t.Errorf("%s:%d: a path of one machine: %s", p, i+1, strings.TrimSpace(line))
			}
		}
	}
}

func TestFiles_CanBeReadInOneSitting(t *testing.T) {
	const linesMax = 900
	for _, p := range tracked(t, ".go", ".md") {
		if n := bytes.Count(read(t, p), []byte("\n")); n > linesMax {
			t.Errorf("%s has %d lines, more than %d; split it where two readers come for two reasons", p, n, linesMax)
		}
	}
}

// What a build leaves behind in a folder of its own is added with everything else that is new.
func TestFiles_AreText(t *testing.T) {
	// As .gitignore has it.
	ignored := regexp.MustCompile(`^quorate$|\.(test|out|prof)$`)
	for _, p := range tracked(t, "") {
		if !ignored.MatchString(p) && bytes.IndexByte(read(t, p), 0) >= 0 {
			t.Errorf("%s is no text; a program that was built belongs into bin", p)
		}
	}
}

// prose calls f for each line of a Markdown file that is not in a code block.
func prose(b []byte, f func(line string)) {
	code := false
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
			continue
		}
		if !code {
			f(strings.TrimRight(line, "\n"))
		}
	}
}

func TestMarkdown_HasOneTitleAndLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, p := range tracked(t, ".md") {
		titles := 0
		prose(read(t, p), func(line string) {
			if strings.HasPrefix(line, "# ") {
				titles++
			}
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				to, anchor, _ := strings.Cut(m[1], "#")
				if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
					continue
				}
				target := p
				if to != "" {
					target = path.Join(path.Dir(p), to)
				}
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s: link to %s leads nowhere", p, m[1])
				} else if anchor != "" && strings.HasSuffix(target, ".md") && !slices.Contains(anchors(read(t, target)), anchor) {
					t.Errorf("%s: %s has no heading %q", p, target, anchor)
				}
			}
		})
		if titles != 1 {
			t.Errorf("%s has %d titles, want 1", p, titles)
		}
	}
}

// anchors returns the names under which a page's headings can be linked to.
func anchors(b []byte) []string {
	var all []string
	drop := regexp.MustCompile(`[^a-z0-9 _-]`)
	prose(b, func(line string) {
		if h := strings.TrimLeft(line, "#"); h != line && strings.HasPrefix(h, " ") {
			all = append(all, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(h)), ""), " ", "-"))
		}
	})
	return all
}

// symbols returns what each package declares: names, and Type.Name for methods and fields. The key is the package's name.
func symbols(t *testing.T) map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for _, s := range sources(t) {
		pkg := s.file.Name.Name
		if pkg == "main" || pkg == "quorate_test" {
			pkg = "quorate"
		}
		if all[pkg] == nil {
			all[pkg] = map[string]bool{}
		}
		add := func(n string) { all[pkg][n] = true }
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil {
					add(receiver(d) + "." + d.Name.Name)
				} else {
					add(d.Name.Name)
				}
			case *ast.GenDecl:
				for _, sp := range d.Specs {
					switch sp := sp.(type) {
					case *ast.TypeSpec:
						add(sp.Name.Name)
						members(sp.Type, func(n string) { add(sp.Name.Name + "." + n) })
					case *ast.ValueSpec:
						for _, n := range sp.Names {
							add(n.Name)
						}
					}
				}
			}
		}
	}
	return all
}

func members(x ast.Expr, add func(string)) {
	var fields *ast.FieldList
	switch x := x.(type) {
	case *ast.StructType:
		fields = x.Fields
	case *ast.InterfaceType:
		fields = x.Methods
	default:
		return
	}
	for _, f := range fields.List {
		for _, n := range f.Names {
			add(n.Name)
		}
	}
}

// TestDocuments_NameWhatExists checks every `package.Name`, `package.Type.Name` and `TestName` in backticks in documents
// that describe the code.
func TestDocuments_NameWhatExists(t *testing.T) {
	known := symbols(t)
	quoted := regexp.MustCompile("`([a-z]+)\\.([A-Za-z]\\w*(?:\\.\\w+)?)`")
	tests := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	declared := map[string]bool{}
	for _, p := range tracked(t, "_test.go") {
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(string(read(t, p)), -1) {
			declared[m[1]] = true
		}
	}
	pages := append([]string{"ARCHITECTURE.md", "CONTRIBUTING.md"}, tracked(t, ".md")...)
	for _, p := range slices.Compact(pages) {
		if p == "CHANGELOG.md" || p == "STYLE.md" {
			continue
		}
		b := read(t, p)
		for _, m := range quoted.FindAllStringSubmatch(string(b), -1) {
			if names, ours := known[m[1]]; ours && !names[m[2]] && !isFile(m[1]+"."+m[2]) {
				t.Errorf("%s: there is no %s.%s", p, m[1], m[2])
			}
		}
		for _, m := range tests.FindAllStringSubmatch(string(b), -1) {
			if !declared[m[1]] {
				t.Errorf("%s: there is no test %s", p, m[1])
			}
		}
	}
}

// isFile says whether a quoted name is that of a file, such as server.go.
func isFile(name string) bool {
	return slices.Contains([]string{".go", ".md", ".yaml", ".sh", ".mod", ".log"}, path.Ext(name))
}

// numbers are the constants that are written to disk or to the wire: prefix or exact names, by package.
var numbers = []struct{ dir, pattern string }{
	{"internal/errs", `^[A-Z]\w*$`},
	{"internal/shard", `^Module[A-Z]\w*|row\w+|entry\w+|place(Node|Shard)|Level|SlotCount$`},
	{"internal/replica", `^msg\w+|frameVersion|incarnationBits|flag\w+$`},
	{"internal/storage", `^kind\w+|flag\w+|logVersion|formatVersion|ownerVersion$`},
	{"internal/datatypes", `^op[A-Z]\w*|row\w+|type[A-Z]\w*|cmdVersion|version$`},
	{"internal/auth", `^(req[A-Z]\w*|row\w+|flag\w+|tokenVersion|encodingVersion|Permit\w+|Nobody|By[A-Z]\w*|Read|Write|Whole)$`},
	{"internal/eventlog", `^op[A-Z]\w*|cmd[A-Z]\w*|query[A-Z]\w*|row\w+|version\w*$`},
}

// TestNumbers_NeverChange compares the numbers of kinds, modules, commands and rows with a golden file. A line may be
// added; one that is gone or different breaks data that exists.
func TestNumbers_NeverChange(t *testing.T) {
	var out strings.Builder
	out.WriteString("# Numbers on disk and on the wire. Lines may be added; none may change or go.\n")
	files := sources(t)
	for _, n := range numbers {
		is := regexp.MustCompile(n.pattern)
		var parsed []*ast.File
		var fset *token.FileSet
		for _, s := range files {
			if s.dir == n.dir && !s.test {
				parsed, fset = append(parsed, s.file), s.fset
			}
		}
		// Constants need no imports: what cannot be resolved is left out.
		conf := types.Config{Error: func(error) {}, Importer: nothing{}}
		pkg, _ := conf.Check(n.dir, fset, parsed, nil)
		scope := pkg.Scope()
		for _, name := range scope.Names() {
			c, ok := scope.Lookup(name).(*types.Const)
			if !ok || !is.MatchString(name) || c.Val().Kind() != constant.Int {
				continue
			}
			fmt.Fprintf(&out, "%s.%s = %s\n", path.Base(n.dir), name, c.Val())
		}
	}
	golden(t, "testdata/numbers.golden", out.String())
}

// nothing is an importer that finds no package.
type nothing struct{}

func (nothing) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// TestMetrics_AreDocumented makes docs/metrics.md from the metrics that the code declares.
func TestMetrics_AreDocumented(t *testing.T) {
	name := regexp.MustCompile(`^quorate_[a-z]+_[a-z0-9_]+$`)
	help := map[string]string{}
	str := func(x ast.Expr) string {
		l, ok := x.(*ast.BasicLit)
		if !ok || l.Kind != token.STRING {
			return ""
		}
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	for _, s := range sources(t) {
		if s.test || !strings.HasPrefix(s.dir, "internal/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				var is, says string
				for _, e := range n.Elts {
					kv, ok := e.(*ast.KeyValueExpr)
					if !ok {
						continue
					}
					if k, ok := kv.Key.(*ast.Ident); ok && k.Name == "Name" {
						is = str(kv.Value)
					} else if ok && k.Name == "Help" {
						says = str(kv.Value)
					}
				}
				if name.MatchString(is) {
					help[is] = says
				}
			case *ast.CallExpr:
				for i, a := range n.Args {
					if is := str(a); name.MatchString(is) && i+1 < len(n.Args) {
						help[is] = str(n.Args[i+1])
					}
				}
			}
			return true
		})
	}
	var out strings.Builder
	out.WriteString("# Metrics\n\nEvery node serves these at `/metrics` on its HTTP port, beside the Go runtime's (`go_…`) and the process's\n" +
		"(`process_…`). This page is made from the code by `go test . -run TestMetrics -rewrite`. Names are kept once released.\n\n" +
		"| Metric | What it says |\n|---|---|\n")
	var names []string
	for n := range help {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		if help[n] == "" {
			t.Errorf("%s has no help text", n)
		}
		fmt.Fprintf(&out, "| `%s` | %s |\n", n, strings.ReplaceAll(help[n], "|", `\|`))
	}
	if len(names) < 15 {
		t.Fatalf("found only %d metrics", len(names))
	}
	golden(t, "docs/metrics.md", out.String())
}

// TestGuarantees_NameDrills checks that each promise names a drill, and that the drill exists.
func TestGuarantees_NameDrills(t *testing.T) {
	var drills []string
	for _, s := range sources(t) {
		if s.dir != "internal/drill" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if k, ok := kv.Key.(*ast.Ident); ok && k.Name == "Name" {
					if l, ok := kv.Value.(*ast.BasicLit); ok && l.Kind == token.STRING {
						v, _ := strconv.Unquote(l.Value)
						drills = append(drills, v)
					}
				}
			}
			return true
		})
	}
	promises := 0
	var title string
	var found bool
	end := func() {
		if title != "" && !found {
			t.Errorf("docs/guarantees.md: promise %q has no line that begins with Drill", title)
		}
	}
	name := regexp.MustCompile("`([a-z-]+)`")
	prose(read(t, "docs/guarantees.md"), func(line string) {
		switch {
		case strings.HasPrefix(line, "## "):
			end()
			title, found = "", false
			if m := regexp.MustCompile(`^## \d+\. (.*)`).FindStringSubmatch(line); m != nil {
				title = m[1]
				promises++
			}
		case strings.HasPrefix(line, "Drill"):
			found = true
			for _, m := range name.FindAllStringSubmatch(line, -1) {
				if !slices.Contains(drills, m[1]) {
					t.Errorf("docs/guarantees.md: there is no drill %q", m[1])
				}
			}
		}
	})
	end()
	if promises != 8 {
		t.Errorf("docs/guarantees.md has %d promises, want 8", promises)
	}
}
