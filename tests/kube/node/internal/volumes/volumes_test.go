package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

var nobody = Owner{User: -1, Group: -1}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFilesChangeTogetherAndThroughOneLink(t *testing.T) {
	folder := t.TempDir()
	first := Files{"tls.crt": {[]byte("one"), 0o400}, "tls.key": {[]byte("one"), 0o400}, "sub/file": {[]byte("x"), 0o644}}
	if changed, err := WriteAtomically(folder, first, nobody); err != nil || !changed {
		t.Fatal(changed, err)
	}
	before, err := os.Readlink(filepath.Join(folder, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := WriteAtomically(folder, first, nobody); err != nil || changed {
		t.Fatalf("the same files were written again: %v, %v", changed, err)
	}
	second := Files{"tls.crt": {[]byte("two"), 0o400}, "ca.crt": {[]byte("two"), 0o400}}
	if changed, err := WriteAtomically(folder, second, nobody); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if got := read(t, filepath.Join(folder, "tls.crt")) + read(t, filepath.Join(folder, "ca.crt")); got != "twotwo" {
		t.Errorf("read %q", got)
	}
	if target, err := os.Readlink(filepath.Join(folder, "tls.crt")); err != nil || target != "..data/tls.crt" {
		t.Errorf("tls.crt leads to %q, %v", target, err)
	}
	for _, gone := range []string{"tls.key", "sub", before} {
		if _, err := os.Lstat(filepath.Join(folder, gone)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
}

func TestModesAndTheGroupsRightToRead(t *testing.T) {
	folder := t.TempDir()
	if _, err := WriteAtomically(folder, Files{"key": {nil, 0o400}}, Owner{User: -1, Group: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(folder, "key"))
	if err != nil || info.Mode().Perm() != 0o440 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
}

func TestWhatLeadsOutOfAVolumeIsRefused(t *testing.T) {
	for _, path := range []string{"../x", "/x", "..data", "a/../../x"} {
		if _, err := WriteAtomically(t.TempDir(), Files{path: {}}, nobody); err == nil {
			t.Errorf("%q was written", path)
		}
	}
	volume := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(volume, "out")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"..", "out", "out/ssl"} {
		if found, err := below(volume, path); err == nil {
			t.Errorf("subPath %q leads to %s", path, found)
		}
	}
	if found, err := below(volume, "a/b"); err != nil || !strings.HasSuffix(found, "a/b") {
		t.Errorf("subPath a/b: %q, %v", found, err)
	}
}

func TestKeysArePickedByName(t *testing.T) {
	data := map[string][]byte{"a": []byte("1"), "b": []byte("2")}
	fallback, own, yes := int32(0o400), int32(0o600), true
	got, err := pick("secret", "s", data, []corev1.KeyToPath{{Key: "a", Path: "x/a", Mode: &own}}, nil, &fallback)
	if err != nil || len(got) != 1 || got["x/a"].Mode != 0o600 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err = pick("secret", "s", data, nil, nil, &fallback); err != nil || len(got) != 2 || got["b"].Mode != 0o400 {
		t.Errorf("got %v, %v", got, err)
	}
	missing := []corev1.KeyToPath{{Key: "c", Path: "c"}}
	if _, err = pick("secret", "s", data, missing, nil, nil); err == nil || !strings.Contains(err.Error(), `couldn't find key c in secret "s"`) {
		t.Errorf("got %v", err)
	}
	if got, err = pick("secret", "s", data, missing, &yes, nil); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}
