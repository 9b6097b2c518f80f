package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quorate/quorate/internal/errs"
)

// Setting is a name and a value in a file that was written for another program.
type Setting struct {
	// Name is that in the file, behind that of its section and a slash if it is in one.
	Name string
	// Value is the text of the value; those of a list have commas between. It is empty for null.
	Value string
	// Line is where it stands, from 1.
	Line int
}

// ReadSettings reads a YAML file of names and values, of which some may stand in sections. It fails with errs.Invalid for what is no such file, and for a
// name that stands there twice. The file may be a pipe; ReadSettings waits for who writes it until ctx ends.
func ReadSettings(ctx context.Context, path string) ([]Setting, error) {
	b, err := readFile(ctx, path)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(b)).Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, errs.New(errs.Invalid, "configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	r := settings{path: path, seen: map[string]bool{}}
	err = r.section("", doc.Content[0])
	return r.out, err
}

// configBytesMax bounds a file of settings: one of thousands of spaces has less. Parsed, it takes some fifty times as much memory.
const configBytesMax = 4 << 20

// readFile reads a file of settings. Opening a pipe waits for who writes it, and nothing but that ends it, so that it is left alone when ctx ends: the
// process is about to.
func readFile(ctx context.Context, path string) ([]byte, error) {
	var b []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		var f *os.File
		if f, err = os.Open(path); err != nil {
			return
		}
		defer f.Close() //nolint:errcheck // nothing is written
		b, err = io.ReadAll(io.LimitReader(f, configBytesMax+1))
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "read configuration %s", path)
	}
	switch {
	case err != nil:
		return nil, errs.Wrap(errs.Invalid, err, "read configuration")
	case len(b) > configBytesMax:
		return nil, errs.New(errs.Invalid, "configuration %s is longer than %d MiB; that is some other file", path, configBytesMax>>20)
	}
	return b, nil
}

// settings collects those of a file.
type settings struct {
	path string
	seen map[string]bool
	out  []Setting
}

func (r *settings) bad(n *yaml.Node, format string, args ...any) error {
	return errs.New(errs.Invalid, "configuration %s, line %d: %s", r.path, n.Line, fmt.Sprintf(format, args...))
}

func (r *settings) section(prefix string, n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return r.bad(n, "there must be names and values")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := n.Content[i], n.Content[i+1]
		s := Setting{Name: prefix + key.Value, Line: key.Line}
		if r.seen[s.Name] {
			return r.bad(key, "%s stands there twice", s.Name)
		}
		r.seen[s.Name] = true
		switch v.Kind {
		case yaml.MappingNode:
			if prefix != "" {
				return r.bad(v, "%s is a section in a section", s.Name)
			}
			if err := r.section(s.Name+"/", v); err != nil {
				return err
			}
			continue
		case yaml.SequenceNode:
			var all []string
			for _, e := range v.Content {
				if e.Kind != yaml.ScalarNode {
					return r.bad(e, "%s is a list of what are no plain values", s.Name)
				}
				all = append(all, e.Value)
			}
			s.Value = strings.Join(all, ",")
		case yaml.ScalarNode:
			if v.Tag != "!!null" {
				s.Value = v.Value
			}
		default:
			return r.bad(v, "%s is no plain value", s.Name)
		}
		r.out = append(r.out, s)
	}
	return nil
}
