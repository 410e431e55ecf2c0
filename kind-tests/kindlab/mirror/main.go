// Mirror is a registry of a few images that can only be read, for the node that it runs on: what asks for the newest busybox of Docker Hub finds
// the one of the tests. It serves what stands in a folder: manifests/NAME/TAG, manifests/NAME/DIGEST and blobs/DIGEST.
//
//	mirror ADDRESS FOLDER
package main

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		slog.Error("usage: mirror ADDRESS FOLDER")
		os.Exit(2)
	}
	server := &http.Server{Addr: os.Args[1], Handler: mirror(os.Args[2]), ReadHeaderTimeout: 10 * time.Second}
	slog.Error("mirror", "error", server.ListenAndServe())
	os.Exit(1)
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// mirror answers as the OCI Distribution Specification has it, as far as pulling needs it.
func mirror(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(path.Clean(r.URL.Path), "/v2/")
		if !ok { // "/v2/" itself: whether we are one
			return
		}
		if at := strings.LastIndex(name, "/blobs/"); at >= 0 {
			http.ServeFile(w, r, path.Join(dir, "blobs", name[at+len("/blobs/"):]))
			return
		}
		at := strings.LastIndex(name, "/manifests/")
		if at < 0 {
			http.NotFound(w, r)
			return
		}
		data, err := os.ReadFile(path.Join(dir, "manifests", name[:at], name[at+len("/manifests/"):]))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(data)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(data)
		}
	})
}
