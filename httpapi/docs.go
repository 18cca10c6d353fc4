package httpapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

var (
	//go:embed docs.html
	docsPage string
	//go:embed docs.css
	docsStyle string
)

// docsPolicy lets the page /docs have its one style sheet, by its hash, and nothing else: no script, no other origin.
var docsPolicy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	base64.StdEncoding.EncodeToString(hash(docsStyle)))

func hash(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// docsOperation is an operation as the page shows it.
type docsOperation struct {
	Method, Path string
	*huma.Operation
}

// renderDocs renders an OpenAPI document as a page that needs nothing else.
func renderDocs(document *huma.OpenAPI) ([]byte, error) {
	page, err := template.New("docs").Funcs(template.FuncMap{
		"type":     typeName,
		"required": func(s *huma.Schema, name string) bool { return slices.Contains(s.Required, name) },
		"scopes":   func(op docsOperation) []string { return op.Security[0]["bearer"] },
		"body":     bodySchema,
	}).Parse(docsPage)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = page.Execute(&b, map[string]any{
		"Info":       document.Info,
		"Tags":       document.Tags,
		"Operations": operationsByTag(document),
		"Schemas":    document.Components.Schemas.Map(),
		"Style":      template.CSS(docsStyle), //nolint:gosec // our own style sheet
	})
	return b.Bytes(), err
}

// operationsByTag returns the operations of each tag, by path, then in the order of methods' use.
func operationsByTag(document *huma.OpenAPI) map[string][]docsOperation {
	byTag := map[string][]docsOperation{}
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		item := document.Paths[path]
		for _, op := range []docsOperation{
			{http.MethodGet, path, item.Get},
			{http.MethodPost, path, item.Post},
			{http.MethodPatch, path, item.Patch},
			{http.MethodDelete, path, item.Delete},
		} {
			if op.Operation != nil {
				byTag[op.Tags[0]] = append(byTag[op.Tags[0]], op)
			}
		}
	}
	return byTag
}

// typeName describes a schema in a few words, with a link where it is described in full.
func typeName(s *huma.Schema) template.HTML {
	var name string
	switch {
	case s.Ref != "":
		ref := template.HTMLEscapeString(s.Ref[strings.LastIndex(s.Ref, "/")+1:])
		name = fmt.Sprintf(`<a href="#%s">%s</a>`, ref, ref)
	case s.Type == huma.TypeArray:
		name = "list of " + string(typeName(s.Items))
	case s.Type == "":
		name = "any value"
	case s.Format == "date-time":
		name = "time"
	default:
		name = template.HTMLEscapeString(s.Type)
	}
	if s.Nullable {
		name += " or null"
	}
	if s.Minimum != nil && s.Maximum != nil {
		name += fmt.Sprintf(", %v to %v", *s.Minimum, *s.Maximum)
	}
	if s.Default != nil {
		name += template.HTMLEscapeString(fmt.Sprintf(", default %v", s.Default))
	}
	for i, value := range s.Enum {
		separator := " or "
		if i == 0 {
			separator = ": "
		}
		name += template.HTMLEscapeString(fmt.Sprintf("%s%v", separator, value))
	}
	return template.HTML(name) //nolint:gosec // each part is escaped above
}

// bodySchema returns the schema of a body, nil if there is none.
func bodySchema(content map[string]*huma.MediaType) *huma.Schema {
	for _, media := range content {
		return media.Schema
	}
	return nil
}
