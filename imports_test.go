package posthorn_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/musehub/posthorn"

// Libraries that a program which embeds Posthorn gets only by asking for them.
const (
	pgx        = "github.com/jackc/pgx"
	modernc    = "modernc.org/sqlite"
	zombiezen  = "zombiezen.com/go/sqlite"
	goose      = "github.com/pressly/goose"
	huma       = "github.com/danielgtaylor/huma"
	kong       = "github.com/alecthomas/kong"
	prometheus = "github.com/prometheus"
	otelSDK    = "go.opentelemetry.io/otel/sdk"
)

type listedPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string // all of them, not only the direct ones
}

// TestImports holds the import rules over all dependencies of each package, on
// what `go list -deps` says; depguard holds them over the direct imports.
func TestImports(t *testing.T) {
	root := []string{".", "signature", "internal/sender", "internal/secretbox", "internal/rawjson", "internal/limit", "internal/filter", "internal/schema"}
	optional := []string{pgx, modernc, zombiezen, goose, huma, kong, prometheus, otelSDK}
	tests := []struct {
		pkg      string
		ours     []string // the packages of ours that it may depend on
		optional []string // the optional libraries that it may depend on
		stdOnly  bool
		anything bool
	}{
		{pkg: ".", ours: root},
		{pkg: "signature", stdOnly: true},
		{pkg: "musehub", stdOnly: true},
		{pkg: "internal/sender"},
		{pkg: "internal/secretbox"},
		{pkg: "internal/rawjson", stdOnly: true},
		{pkg: "internal/limit", stdOnly: true},
		{pkg: "internal/filter"},
		{pkg: "internal/schema"},
		{pkg: "internal/storetest", ours: root},
		{pkg: "internal/bench", ours: root},
		{pkg: "internal/certtest", stdOnly: true},
		{pkg: "internal/guardtest", stdOnly: true},
		{pkg: "internal/jwtauth"},
		{pkg: "internal/pgtest", optional: []string{pgx}},
		{pkg: "internal/pgtest/with", anything: true}, // a program of the tests'
		{pkg: "sqlite", ours: root, optional: []string{modernc, zombiezen, goose}},
		{pkg: "postgres", ours: root, optional: []string{pgx, goose}},
		{pkg: "httpapi", ours: root, optional: []string{huma}},
		{pkg: "cmd/posthorn", anything: true},
		{pkg: "examples/outbox", anything: true}, // a program of its own, which shows how to embed
	}

	watchSources(t)
	packages := listPackages(t)
	ruled := map[string]bool{}
	for _, tt := range tests {
		path := ourPath(tt.pkg)
		ruled[path] = true
		t.Run(tt.pkg, func(t *testing.T) {
			p, ok := packages[path]
			if !ok {
				t.Fatalf("there is no package %s", path)
			}
			if tt.anything {
				return
			}
			for _, dep := range p.Deps {
				allowed := !tt.stdOnly || packages[dep].Standard
				if within(dep, module) {
					allowed = slices.ContainsFunc(tt.ours, func(o string) bool { return ourPath(o) == dep })
				} else if i := slices.IndexFunc(optional, func(lib string) bool { return within(dep, lib) }); i >= 0 {
					allowed = slices.Contains(tt.optional, optional[i])
				}
				if !allowed {
					t.Errorf("depends on %s", dep)
				}
			}
			for _, name := range []string{"flag", "os/signal"} {
				if slices.Contains(p.Imports, name) {
					t.Errorf("imports %s, which is for cmd/posthorn alone", name)
				}
			}
		})
	}
	for path := range packages {
		if within(path, module) && !ruled[path] {
			t.Errorf("%s has no import rule: give it one here and in .golangci.yml", path)
		}
	}
}

func ourPath(pkg string) string {
	if pkg == "." {
		return module
	}
	return module + "/" + pkg
}

// within reports whether the import path is prefix or lies below it.
func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// listPackages returns the packages of the module and all their dependencies by
// import path.
func listPackages(t *testing.T) map[string]listedPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	packages := map[string]listedPackage{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}

// watchSources reads the module's Go files, so that the test's cached result
// counts for these files only: go test doesn't see what go list reads.
func watchSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(path, ".") && path != ".":
			return filepath.SkipDir
		case filepath.Ext(path) == ".go":
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
