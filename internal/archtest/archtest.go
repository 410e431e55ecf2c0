// Package archtest holds the house to its plan: the package table of docs/architecture.md, read as rules and checked against the
// imports of every package. It parses the sources itself: a test that shells out to "go list" is served stale by the test cache.
package archtest

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Module is the import path that all own packages begin with.
const Module = "github.com/isthmus-mesh/isthmus"

// Rule is a row of the table.
type Rule struct {
	Package   string   // relative to the module; covers the packages below it that have no row of their own
	May       []string // own packages, each covering what lies below it
	Libraries []string // runs of path elements that an import of another module must contain
}

const (
	begin = "<!-- archtest:begin -->"
	end   = "<!-- archtest:end -->"
)

var quoted = regexp.MustCompile("`([^`]+)`")

// ParseRules reads the table between the archtest marks of a Markdown page.
func ParseRules(page string) ([]Rule, error) {
	_, table, ok := strings.Cut(page, begin)
	if !ok {
		return nil, errors.New("archtest: no " + begin)
	}
	table, _, ok = strings.Cut(table, end)
	if !ok {
		return nil, errors.New("archtest: no " + end)
	}
	var rules []Rule
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 7 || !strings.Contains(cells[1], "`") {
			continue // not a row
		}
		pkg := names(cells[1])
		if len(pkg) != 1 {
			return nil, fmt.Errorf("archtest: want one package in the row %q", line)
		}
		rules = append(rules, Rule{Package: pkg[0], May: names(cells[3]), Libraries: names(cells[4])})
	}
	if len(rules) == 0 {
		return nil, errors.New("archtest: the table is empty")
	}
	return rules, nil
}

func names(cell string) []string {
	var out []string
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		out = append(out, m[1])
	}
	return out
}

// Import is one import of an own package by another, or of another module's package.
type Import struct {
	From string // package, relative to the module
	To   string // import path as written
	File string
	Line int
	Test bool // from a _test.go file
}

// Imports parses every Go file under fsys, the module's root, and returns its imports but those of the standard library.
func Imports(fsys fs.FS) ([]Import, error) {
	var imports []Import
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() && name != "." && isModule(fsys, name):
			return fs.SkipDir // what it imports is its own business
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, filepath.FromSlash(name), src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			to := strings.Trim(i.Path.Value, `"`)
			if !strings.Contains(strings.SplitN(to, "/", 2)[0], ".") {
				continue // the standard library
			}
			imports = append(imports, Import{
				From: path.Dir(name), To: to, File: name, Line: set.Position(i.Pos()).Line,
				Test: strings.HasSuffix(name, "_test.go"),
			})
		}
		return nil
	})
	return imports, err
}

// isModule reports whether a folder is the root of a module of its own.
func isModule(fsys fs.FS, dir string) bool {
	_, err := fs.Stat(fsys, path.Join(dir, "go.mod"))
	return err == nil
}

// Check returns what breaks the rules, one sentence each.
func Check(rules []Rule, imports []Import) []string {
	var broken []string
	for _, i := range imports {
		if why := check(rules, i); why != "" {
			broken = append(broken, fmt.Sprintf("%s:%d: %s imports %s: %s", i.File, i.Line, i.From, i.To, why))
		}
	}
	return broken
}

// programs never import each other, not even in a test.
var programs = []string{"control", "gateway", "sidecar"}

func check(rules []Rule, i Import) string {
	own, isOwn := strings.CutPrefix(i.To, Module+"/")
	from, to := top(i.From), top(own)
	if isOwn && from != to && slices.Contains(programs, from) && slices.Contains(programs, to) {
		return "programs never import each other"
	}
	if i.Test {
		return "" // a test may bring its own tools
	}
	rule := ruleFor(rules, i.From)
	switch {
	case rule == nil:
		return "the package has no row in docs/architecture.md"
	case isOwn && below(own, rule.Package):
		// Within one row: a program may use the rooms of its own, but what has a row of its own is an adapter of the idea above
		// it, and the idea never reaches down to it.
		if target := ruleFor(rules, own); target.Package != rule.Package {
			return "a parent never imports its child"
		}
		return ""
	case isOwn && slices.ContainsFunc(rule.May, func(m string) bool { return below(own, m) }):
		return ""
	case isOwn:
		return "its row does not allow it"
	case slices.ContainsFunc(rule.Libraries, func(l string) bool { return strings.Contains("/"+i.To+"/", "/"+l+"/") }):
		return ""
	default:
		return "its row does not name that library"
	}
}

func ruleFor(rules []Rule, pkg string) *Rule {
	var best *Rule
	for k := range rules {
		if below(pkg, rules[k].Package) && (best == nil || len(rules[k].Package) > len(best.Package)) {
			best = &rules[k]
		}
	}
	return best
}

func below(pkg, root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") }

func top(pkg string) string {
	first, _, _ := strings.Cut(pkg, "/")
	return first
}

// Reach returns every import path that pkg (relative to the module) reaches through own packages, tests left out, ordered.
func Reach(imports []Import, pkg string) []string {
	seen := map[string]bool{}
	queue := []string{pkg}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for _, i := range imports {
			if i.Test || i.From != from || seen[i.To] {
				continue
			}
			seen[i.To] = true
			if own, ok := strings.CutPrefix(i.To, Module+"/"); ok {
				queue = append(queue, own)
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
