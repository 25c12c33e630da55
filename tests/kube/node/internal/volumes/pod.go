package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"crescendo.dev/kube-node/internal/env"
)

// Mount is a folder or file of the host that a container sees.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// Pod has the volumes of one pod, below a folder of its own.
type Pod struct {
	folder string
	source Source
	paths  map[string]place
}

type place struct {
	path     string
	readOnly bool
}

// NewPod has no volumes yet.
func NewPod(folder string, source Source) *Pod {
	return &Pod{folder: folder, source: source, paths: map[string]place{}}
}

// owner is whose the files of the pod's volumes are.
func owner(pod *corev1.Pod) Owner {
	group := -1
	if security := pod.Spec.SecurityContext; security != nil && security.FSGroup != nil {
		group = int(*security.FSGroup)
	}
	return Owner{User: -1, Group: group}
}

// Prepare makes every volume, or brings it up to date. One that has to wait is an error to try again after.
func (p *Pod) Prepare(ctx context.Context, pod *corev1.Pod) error {
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		found, err := p.prepare(ctx, pod, volume)
		if err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		p.paths[volume.Name] = found
	}
	return nil
}

// Refresh writes what has changed in ConfigMaps, Secrets, the pod and tokens. An object that is gone leaves its files.
func (p *Pod) Refresh(ctx context.Context, pod *corev1.Pod) error {
	var problems []error
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		made, known, err := files(ctx, pod, p.source, volume)
		if known && err == nil {
			_, err = WriteAtomically(p.own(volume.Name), made, owner(pod))
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("volume %s: %w", volume.Name, err))
		}
	}
	return errors.Join(problems...)
}

func (p *Pod) own(name string) string { return filepath.Join(p.folder, name) }

func (p *Pod) prepare(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume) (place, error) {
	path := p.own(volume.Name)
	made, known, err := files(ctx, pod, p.source, volume)
	if err != nil {
		return place{}, err
	}
	switch {
	case known:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return place{}, err
		}
		_, err := WriteAtomically(path, made, owner(pod))
		return place{path, true}, err
	case volume.EmptyDir != nil:
		return place{path, false}, p.emptyDir(path, volume.EmptyDir, owner(pod))
	case volume.HostPath != nil:
		return place{volume.HostPath.Path, false}, hostPath(volume.HostPath)
	case volume.PersistentVolumeClaim != nil:
		claim := volume.PersistentVolumeClaim
		found, err := p.claim(pod, claim.ClaimName, nil)
		return place{found, claim.ReadOnly}, err
	case volume.Ephemeral != nil:
		found, err := p.claim(pod, pod.Name+"-"+volume.Name, pod)
		return place{found, false}, err
	}
	return place{}, fmt.Errorf("this node has no volumes of its kind")
}

func (p *Pod) emptyDir(path string, volume *corev1.EmptyDirVolumeSource, owner Owner) error {
	if _, made := p.paths[filepath.Base(path)]; made {
		return nil
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if volume.Medium == corev1.StorageMediumMemory {
		options := "mode=0777"
		if limit := volume.SizeLimit; limit != nil {
			options += ",size=" + strconv.FormatInt(limit.Value(), 10)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount memory: %w", err)
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return err
	}
	return own(path, owner, true)
}

func hostPath(volume *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if volume.Type != nil {
		kind = *volume.Type
	}
	info, err := os.Stat(volume.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && kind == corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(volume.Path, 0o755)
	case missing && kind == corev1.HostPathFileOrCreate:
		return os.WriteFile(volume.Path, nil, 0o644)
	case err != nil:
		return fmt.Errorf("hostPath: %w", err)
	case kind == corev1.HostPathDirectory && !info.IsDir():
		return fmt.Errorf("hostPath type check failed: %s is not a directory", volume.Path)
	case kind == corev1.HostPathFile && !info.Mode().IsRegular():
		return fmt.Errorf("hostPath type check failed: %s is not a file", volume.Path)
	}
	return nil
}

// claim finds the folder of a claim's volume. The claim of an ephemeral volume has to belong to its pod.
func (p *Pod) claim(pod *corev1.Pod, name string, of *corev1.Pod) (string, error) {
	claim, err := p.source.Claim(pod.Namespace, name)
	if err != nil {
		return "", fmt.Errorf("claim %q: %w", name, err)
	}
	if of != nil && !ownedBy(claim, of) {
		return "", fmt.Errorf("claim %q was not made for this pod", name)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return "", fmt.Errorf("claim %q is not bound", name)
	}
	volume, err := p.source.Volume(claim.Spec.VolumeName)
	if err != nil {
		return "", fmt.Errorf("volume %q of claim %q: %w", claim.Spec.VolumeName, name, err)
	}
	path := ""
	switch {
	case volume.Spec.HostPath != nil:
		path = volume.Spec.HostPath.Path
	case volume.Spec.Local != nil:
		path = volume.Spec.Local.Path
	default:
		return "", fmt.Errorf("volume %q is neither hostPath nor local: this node has no other", volume.Name)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	security := pod.Spec.SecurityContext
	onMismatch := security != nil && security.FSGroupChangePolicy != nil && *security.FSGroupChangePolicy == corev1.FSGroupChangeOnRootMismatch
	return path, own(path, owner(pod), !onMismatch)
}

func ownedBy(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) bool {
	for _, reference := range claim.OwnerReferences {
		if reference.UID == pod.UID {
			return true
		}
	}
	return false
}

// own gives a folder and what is in it to the pod's group, which may write; only if the folder itself is not so yet, unless always.
func own(folder string, owner Owner, always bool) error {
	if owner.Group < 0 {
		return nil
	}
	var info unix.Stat_t
	if err := unix.Stat(folder, &info); err != nil {
		return err
	}
	if !always && int(info.Gid) == owner.Group && info.Mode&unix.S_ISGID != 0 {
		return nil
	}
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, owner.Group); err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode() | 0o660
		if entry.IsDir() {
			mode |= 0o110 | fs.ModeSetgid
		}
		return os.Chmod(path, mode)
	})
}

// Mounts are what a container sees of the volumes.
func (p *Pod) Mounts(container *corev1.Container, environment *env.Environment) ([]Mount, error) {
	var out []Mount
	for i := range container.VolumeMounts {
		mount := &container.VolumeMounts[i]
		volume, found := p.paths[mount.Name]
		if !found {
			return nil, fmt.Errorf("volumeMounts: there is no volume %q", mount.Name)
		}
		path, err := subPath(mount, environment)
		if err != nil {
			return nil, err
		}
		source := volume.path
		if path != "" {
			if source, err = below(volume.path, path); err != nil {
				return nil, fmt.Errorf("subPath of %s: %w", mount.MountPath, err)
			}
		}
		out = append(out, Mount{Source: source, Target: mount.MountPath, ReadOnly: mount.ReadOnly || volume.readOnly})
	}
	return out, nil
}

// below is what a subPath leads to, made as a folder if there is nothing. Links are followed within the volume only.
func below(volume, path string) (string, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(path, 0o755); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	// Files of objects are links: what is mounted is the file of this moment, which later changes do not reach.
	return filepath.EvalSymlinks(filepath.Join(volume, path))
}

// Close takes away what was mounted; the folders go with the pod's.
func (p *Pod) Close(pod *corev1.Pod) error {
	var problems []error
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		if volume.EmptyDir != nil && volume.EmptyDir.Medium == corev1.StorageMediumMemory {
			if _, made := p.paths[volume.Name]; made {
				problems = append(problems, unix.Unmount(p.own(volume.Name), unix.MNT_DETACH))
			}
		}
	}
	return errors.Join(problems...)
}
