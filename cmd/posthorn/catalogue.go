package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/musehub/posthorn"
)

// catalogueFlags are the flags that describe event types.
type catalogueFlags struct {
	Catalogue      string `group:"deliveries" placeholder:"FILE" help:"JSON file that describes event types: {\"eventTypes\":[{\"name\":…,\"description\":…,\"schema\":…,\"examples\":[…]}]}. Without --event-types, these are all there are."`
	EnforceSchemas bool   `group:"deliveries" help:"Refuse payloads that are not as the schema of their type in --catalogue says."`
}

// maxCatalogue is how many bytes the file may have.
const maxCatalogue = 4 << 20

// read reads the file, if there is one.
func (f *catalogueFlags) read() ([]posthorn.EventType, error) {
	if f.Catalogue == "" {
		if f.EnforceSchemas {
			return nil, fmt.Errorf("--enforce-schemas needs a --catalogue")
		}
		return nil, nil
	}
	file, err := os.Open(f.Catalogue)
	if err != nil {
		return nil, fmt.Errorf("--catalogue: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCatalogue+1))
	if err != nil {
		return nil, fmt.Errorf("--catalogue: %w", err)
	}
	if len(text) > maxCatalogue {
		return nil, fmt.Errorf("--catalogue: the file has more than %d bytes", maxCatalogue)
	}
	var catalogue struct{ EventTypes []posthorn.EventType }
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&catalogue); err != nil {
		return nil, fmt.Errorf("--catalogue: %s is no catalogue: %w", f.Catalogue, err)
	}
	if len(catalogue.EventTypes) == 0 {
		return nil, fmt.Errorf("--catalogue: %s has no eventTypes", f.Catalogue)
	}
	return catalogue.EventTypes, nil
}
