package server

import (
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
// name that stands there twice.
func ReadSettings(path string) ([]Setting, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "read configuration")
	}
	defer f.Close() //nolint:errcheck // nothing is written
	var doc yaml.Node
	if err := yaml.NewDecoder(f).Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, errs.New(errs.Invalid, "configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	r := settings{path: path, seen: map[string]bool{}}
	err = r.section("", doc.Content[0])
	return r.out, err
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
