package strictyaml

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ReadConfig reads a program's configuration, one document of at most MaxFile bytes, into a struct with JSON tags, after ${NAME} got its
// value from the environment (Expand). The document says where in the file a field stands.
func ReadConfig(file string, into any) (*Document, error) {
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("read %s: more than the limit of %d bytes", file, MaxFile)
	}
	if data, err = Expand(file, data, os.LookupEnv); err != nil {
		return nil, err
	}
	documents, err := Documents(file, data)
	if err != nil {
		return nil, err
	}
	if err := Decode(file, data, into); err != nil {
		return nil, err
	}
	return &documents[0], nil
}
