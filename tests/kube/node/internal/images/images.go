// Package images maps the images that pods name to folders of programs on this host.
package images

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Image is what stands in for a container image.
type Image struct {
	// Path is a folder of programs; it goes to the front of PATH.
	Path string `json:"path"`
	// Entrypoint is run by a container that has no command of its own.
	Entrypoint []string `json:"entrypoint"`
}

// Inside is where a container finds the folder of its image: a place that no volume of the pod covers.
const Inside = "/kube-node/image"

// Map holds an Image for each repository.
type Map map[string]Image

// Load reads a map from a YAML file and checks it.
func Load(file string) (Map, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the map of images: %w", err)
	}
	var found Map
	if err := yaml.UnmarshalStrict(text, &found); err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	for repository, image := range found {
		if repository != Repository(repository) {
			return nil, fmt.Errorf("%s: %q has a tag or a digest: give the repository alone", file, repository)
		}
		if !filepath.IsAbs(image.Path) {
			return nil, fmt.Errorf("%s: path of %q: %q is not an absolute path", file, repository, image.Path)
		}
		if info, err := os.Stat(image.Path); err != nil {
			return nil, fmt.Errorf("%s: path of %q: %w", file, repository, err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("%s: path of %q: %s is not a folder", file, repository, image.Path)
		}
	}
	return found, nil
}

// Find returns what stands in for an image reference.
func (m Map) Find(reference string) (Image, error) {
	repository := Repository(reference)
	image, found := m[repository]
	if !found {
		return Image{}, fmt.Errorf("image %q: the map of images has no %q", reference, repository)
	}
	return image, nil
}

// Repository is a reference without its tag and digest.
func Repository(reference string) string {
	reference, _, _ = strings.Cut(reference, "@")
	// A colon before the last slash belongs to the registry's port.
	if colon := strings.LastIndexByte(reference, ':'); colon > strings.LastIndexByte(reference, '/') {
		reference = reference[:colon]
	}
	return reference
}

// Command is what a container runs: its command or the image's entrypoint, and its arguments.
func Command(image Image, command, args []string) ([]string, error) {
	line := command
	if len(line) == 0 {
		line = image.Entrypoint
	}
	line = append(append([]string{}, line...), args...)
	if len(line) == 0 {
		return nil, fmt.Errorf("neither the container nor its image says what to run")
	}
	return line, nil
}

// Folders are what a process of the image has to reach on the host: what links in its folder lead to, and the libraries that
// programs say they load from elsewhere.
func (i Image) Folders() ([]string, error) {
	entries, err := os.ReadDir(i.Path)
	if err != nil {
		return nil, fmt.Errorf("read the programs of an image: %w", err)
	}
	var found []string
	for _, entry := range entries {
		// Links lead to the programs as well as files do.
		target, err := filepath.EvalSymlinks(filepath.Join(i.Path, entry.Name()))
		if err != nil {
			continue
		}
		if info, err := os.Stat(target); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		if folder := filepath.Dir(target); folder != i.Path && !slices.Contains(found, folder) {
			found = append(found, folder)
		}
		for _, folder := range libraries(target) {
			if !slices.Contains(found, folder) {
				found = append(found, folder)
			}
		}
	}
	return found, nil
}

// libraries are the folders of a program's run path, with those that they are links to.
func libraries(program string) []string {
	file, err := elf.Open(program)
	if err != nil {
		// A script.
		return nil
	}
	defer file.Close()
	var found []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := file.DynString(tag)
		if err != nil {
			continue
		}
		for _, path := range filepath.SplitList(strings.Join(paths, ":")) {
			folder := strings.ReplaceAll(path, "$ORIGIN", filepath.Dir(program))
			real, err := filepath.EvalSymlinks(folder)
			if err != nil {
				continue
			}
			found = append(found, folder, real)
		}
	}
	return found
}
