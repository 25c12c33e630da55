package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// File is one file of a volume that is made from objects.
type File struct {
	Data []byte
	Mode fs.FileMode
}

// Files are the files of a volume by their path in it.
type Files map[string]File

// Owner is whose files a volume's are; -1 leaves them as they are.
type Owner struct{ User, Group int }

// dataLink leads to the folder with the present files. Everything that a container sees is a link through it, so one rename
// changes all files at once, as the kubelet does it.
const dataLink = "..data"

// WriteAtomically makes a folder hold these files and no others. It says whether anything changed.
func WriteAtomically(folder string, files Files, owner Owner) (bool, error) {
	for path := range files {
		if !filepath.IsLocal(path) || strings.HasPrefix(path, "..") {
			return false, fmt.Errorf("path %q leads out of its volume", path)
		}
	}
	old, err := os.Readlink(filepath.Join(folder, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil && same(filepath.Join(folder, old), files) {
		return false, nil
	}
	fresh, err := os.MkdirTemp(folder, "..")
	if err != nil {
		return false, err
	}
	if err := writeAll(fresh, files, owner); err != nil {
		return false, errors.Join(err, os.RemoveAll(fresh))
	}
	if err := relink(filepath.Base(fresh), filepath.Join(folder, dataLink)); err != nil {
		return false, err
	}
	if err := linkNames(folder, files); err != nil {
		return false, err
	}
	if old != "" {
		return true, os.RemoveAll(filepath.Join(folder, old))
	}
	return true, nil
}

func same(folder string, files Files) bool {
	found := map[string]bool{}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, wanted := files[name]
		if !wanted || !bytes.Equal(file.Data, data) {
			return fs.ErrInvalid
		}
		found[name] = true
		return nil
	})
	return err == nil && len(found) == len(files)
}

func writeAll(folder string, files Files, owner Owner) error {
	if err := os.Chmod(folder, 0o755); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		target := filepath.Join(folder, path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		file := files[path]
		mode := file.Mode
		if owner.Group >= 0 {
			// What a pod's group owns, the group can read.
			mode |= 0o440
		}
		if err := os.WriteFile(target, file.Data, 0o600); err != nil {
			return err
		}
		if err := os.Chmod(target, mode); err != nil {
			return err
		}
		if err := os.Lchown(target, owner.User, owner.Group); err != nil {
			return err
		}
	}
	return nil
}

func relink(to, link string) error {
	next := link + "_tmp"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, next); err != nil {
		return err
	}
	return os.Rename(next, link)
}

// linkNames makes a link for each name at the top, and takes away those of files that are gone.
func linkNames(folder string, files Files) error {
	wanted := map[string]bool{}
	for path := range files {
		top, _, _ := strings.Cut(path, "/")
		wanted[top] = true
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case strings.HasPrefix(name, ".."):
		case wanted[name]:
			delete(wanted, name)
		default:
			if err := os.Remove(filepath.Join(folder, name)); err != nil {
				return err
			}
		}
	}
	for name := range wanted {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}
