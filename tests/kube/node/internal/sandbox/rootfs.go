package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"crescendo.dev/kube-node/internal/volumes"
)

// tree is a container's files while they are put together: the host's, over which the container's own folder lies.
type tree struct {
	root string
	spec *Container
}

// enterTree makes the container's files the root of this process. The host's files stay as they are: what a container
// writes, and what is made here for it, goes to its own folder.
func enterTree(spec *Container) error {
	t := tree{filepath.Join(spec.Root, "merged"), spec}
	// What is mounted on the host from here on comes in no more, and nothing goes out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to the container: %w", err)
	}
	for _, step := range []func() error{
		t.overlay, t.hostMounts, t.hide, t.openPrograms, t.system, t.mounts, t.workingDir, t.seal, t.pivot,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// at is where a path of the container is before it becomes the root: links are followed as they will be in it.
func (t tree) at(path string) (string, error) { return securejoin.SecureJoin(t.root, path) }

func (t tree) overlay() error {
	upper, work := filepath.Join(t.spec.Root, "upper"), filepath.Join(t.spec.Root, "work")
	for _, folder := range []string{upper, work, t.root} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", t.root, "overlay", 0, options); err != nil {
		return fmt.Errorf("lay the container's files over the host's: %w", err)
	}
	return nil
}

// pseudo are file systems that a container has of its own, or not at all.
var pseudo = map[string]bool{
	"proc": true, "sysfs": true, "devtmpfs": true, "devpts": true, "cgroup": true, "cgroup2": true, "mqueue": true, "overlay": true,
	"securityfs": true, "debugfs": true, "tracefs": true, "bpf": true, "pstore": true, "configfs": true, "fusectl": true,
	"hugetlbfs": true, "binfmt_misc": true, "nsfs": true,
}

// hostMounts brings in what is mounted below the host's root, read-only.
func (t tree) hostMounts() error {
	points, err := mountPoints("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, point := range points {
		if point == "/" || point == t.root || under(point, "/dev") || under(point, "/proc") || under(point, "/sys") || t.hidden(point) {
			continue
		}
		if err := t.bind(volumes.Mount{Source: point, Target: point, ReadOnly: true}); err != nil {
			return err
		}
	}
	return nil
}

func (t tree) hidden(path string) bool {
	for _, folder := range t.spec.Hidden {
		if under(path, folder) {
			return true
		}
	}
	return false
}

func under(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// mountPoints are the places where files are mounted, an outer one before what is in it.
func mountPoints(file string) ([]string, error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	found := map[string]bool{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 1 {
			return nil, fmt.Errorf("%s has the line %q", file, lines.Text())
		}
		if !pseudo[kind[0]] {
			found[unescape(fields[4])] = true
		}
	}
	var points []string
	for point := range found {
		points = append(points, point)
	}
	sort.Strings(points)
	return points, lines.Err()
}

// unescape reads the octal codes that stand for blanks in a path.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// covered are the hidden folders that no volume is mounted over as a whole.
func (t tree) covered() []string {
	mounted := map[string]bool{}
	for _, mount := range t.spec.Mounts {
		mounted[filepath.Clean(mount.Target)] = true
	}
	var folders []string
	for _, folder := range t.spec.Hidden {
		if info, err := os.Stat(folder); err == nil && info.IsDir() && !mounted[folder] {
			folders = append(folders, folder)
		}
	}
	return folders
}

func (t tree) hide() error {
	for i, folder := range t.covered() {
		empty := filepath.Join(t.spec.Root, "empty", strconv.Itoa(i))
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(empty, 0o1777); err != nil {
			return err
		}
		if err := t.bind(volumes.Mount{Source: empty, Target: folder}); err != nil {
			return err
		}
	}
	return nil
}

// openPrograms lets every user reach the image's folders, wherever on the host they are.
func (t tree) openPrograms() error {
	for _, folder := range t.spec.Programs {
		if t.hidden(folder) {
			if err := t.bind(volumes.Mount{Source: folder, Target: folder, ReadOnly: true}); err != nil {
				return err
			}
		}
		for above := filepath.Dir(folder); above != "/"; above = filepath.Dir(above) {
			if err := t.openFolder(above); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t tree) openFolder(folder string) error {
	path, err := t.at(folder)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode()&0o001 != 0 {
		return err
	}
	return os.Chmod(path, info.Mode()|0o001)
}

// system mounts what every container has of its own: its processes, devices and terminals.
func (t tree) system() error {
	type mount struct {
		kind, target, options string
		flags                 uintptr
	}
	const plain = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []mount{
		{"proc", "/proc", "", plain | unix.MS_NODEV},
		{"sysfs", "/sys", "", plain | unix.MS_NODEV | unix.MS_RDONLY},
		{"tmpfs", "/dev", "mode=755,size=65536k", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620", plain},
		{"tmpfs", "/dev/shm", "mode=1777,size=65536k", plain | unix.MS_NODEV},
		{"mqueue", "/dev/mqueue", "", plain | unix.MS_NODEV},
	} {
		target := filepath.Join(t.root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := t.bind(volumes.Mount{Source: "/dev/" + device, Target: "/dev/" + device}); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(t.root, "dev", link)); err != nil {
			return err
		}
	}
	return nil
}

func (t tree) mounts() error {
	mounts := append([]volumes.Mount{}, t.spec.Mounts...)
	// An outer one first, or it would hide what is in it.
	sort.SliceStable(mounts, func(i, j int) bool {
		return strings.Count(filepath.Clean(mounts[i].Target), "/") < strings.Count(filepath.Clean(mounts[j].Target), "/")
	})
	for _, mount := range mounts {
		if err := t.bind(mount); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a folder or file of the host at a place in the container, which is made if it is not there.
func (t tree) bind(mount volumes.Mount) error {
	info, err := os.Stat(mount.Source)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", mount.Target, err)
	}
	target, err := t.at(mount.Target)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", mount.Target, err)
	}
	if err := makePlace(target, info.IsDir()); err != nil {
		return fmt.Errorf("make the place to mount at, %s: %w", mount.Target, err)
	}
	if err := unix.Mount(mount.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount at %s: %w", mount.Target, err)
	}
	if mount.ReadOnly {
		return sealMount(target)
	}
	return nil
}

func sealMount(point string) error {
	if err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", point, err)
	}
	return nil
}

func makePlace(target string, folder bool) error {
	if folder {
		return os.MkdirAll(target, 0o755)
	}
	if _, err := os.Lstat(target); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o644)
}

func (t tree) workingDir() error {
	if t.spec.WorkingDir == "" {
		return nil
	}
	folder, err := t.at(t.spec.WorkingDir)
	if err != nil {
		return err
	}
	return os.MkdirAll(folder, 0o755)
}

func (t tree) seal() error {
	if !t.spec.ReadOnly {
		return nil
	}
	for _, folder := range t.covered() {
		point, err := t.at(folder)
		if err != nil {
			return err
		}
		if err := sealMount(point); err != nil {
			return err
		}
	}
	return sealMount(t.root)
}

// pivot makes the tree the root and lets go of the host's.
func (t tree) pivot() error {
	if err := unix.Chdir(t.root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's files: %w", err)
	}
	return unix.Chdir("/")
}
