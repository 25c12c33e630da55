package images

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRepository(t *testing.T) {
	for reference, want := range map[string]string{
		"crescendo-controller":                     "crescendo-controller",
		"registry.example.com/a/b:0.1.0":           "registry.example.com/a/b",
		"registry.example.com:5000/a/b":            "registry.example.com:5000/a/b",
		"registry.example.com:5000/a/b:1@sha256:0": "registry.example.com:5000/a/b",
		"etcd@sha256:00":                           "etcd",
	} {
		if got := Repository(reference); got != want {
			t.Errorf("Repository(%q) = %q, want %q", reference, got, want)
		}
	}
}

func TestCommandTakesTheEntrypointOnlyWithoutACommand(t *testing.T) {
	image := Image{Entrypoint: []string{"node", "agent"}}
	for _, c := range []struct{ command, args, want []string }{
		{nil, nil, []string{"node", "agent"}},
		{nil, []string{"--x"}, []string{"node", "agent", "--x"}},
		{[]string{"sh"}, nil, []string{"sh"}},
		{[]string{"sh"}, []string{"-c", "true"}, []string{"sh", "-c", "true"}},
	} {
		got, err := Command(image, c.command, c.args)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("Command(%v, %v) = %v, %v, want %v", c.command, c.args, got, err, c.want)
		}
	}
	if _, err := Command(Image{}, nil, nil); err == nil {
		t.Error("a container with nothing to run was accepted")
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "map.yaml")
	for text, want := range map[string]string{
		"a: {path: relative}":               "not an absolute path",
		"a: {path: /does/not/exist}":        "no such file",
		"a:1: {path: /}":                    "give the repository alone",
		"a: {path: /, entry: [x]}":          "entry",
		"a: {path: " + file + "}":           "is not a folder",
		"\"b@sha256:00\": {path: /usr/bin}": "give the repository alone",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load of %q: %v, want %q", text, err, want)
		}
	}
}
