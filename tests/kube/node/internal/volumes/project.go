// Package volumes makes the folders that a pod's containers mount.
package volumes

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"crescendo.dev/kube-node/internal/env"
)

// Source is where volumes come from.
type Source interface {
	env.Source
	// Token is a service account's token that is bound to the pod, a new one before the old one ends.
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, error)
	Claim(namespace, name string) (*corev1.PersistentVolumeClaim, error)
	Volume(name string) (*corev1.PersistentVolume, error)
}

func mode(given, fallback *int32) fs.FileMode {
	switch {
	case given != nil:
		return fs.FileMode(*given)
	case fallback != nil:
		return fs.FileMode(*fallback)
	}
	return 0o644
}

// pick takes the named keys of an object, or all of them if none is named.
func pick(kind, name string, data map[string][]byte, items []corev1.KeyToPath, optional *bool, fallback *int32) (Files, error) {
	files := Files{}
	if len(items) == 0 {
		for key, value := range data {
			files[key] = File{value, mode(nil, fallback)}
		}
		return files, nil
	}
	for _, item := range items {
		value, found := data[item.Key]
		if found {
			files[item.Path] = File{value, mode(item.Mode, fallback)}
		} else if optional == nil || !*optional {
			return nil, &env.MissingError{Cause: fmt.Sprintf("couldn't find key %s in %s %q", item.Key, kind, name)}
		}
	}
	return files, nil
}

func absent(err error, optional *bool, source Source, kind, name string) error {
	switch {
	case !source.IsNotFound(err):
		return fmt.Errorf("read %s %q: %w", kind, name, err)
	case optional != nil && *optional:
		return nil
	}
	return &env.MissingError{Cause: fmt.Sprintf("%s %q not found", kind, name)}
}

func configMapFiles(source Source, namespace, name string, items []corev1.KeyToPath, optional *bool, fallback *int32) (Files, error) {
	object, err := source.ConfigMap(namespace, name)
	if err != nil {
		return Files{}, absent(err, optional, source, "configmap", name)
	}
	data := map[string][]byte{}
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	for key, value := range object.BinaryData {
		data[key] = value
	}
	return pick("configmap", name, data, items, optional, fallback)
}

func secretFiles(source Source, namespace, name string, items []corev1.KeyToPath, optional *bool, fallback *int32) (Files, error) {
	object, err := source.Secret(namespace, name)
	if err != nil {
		return Files{}, absent(err, optional, source, "secret", name)
	}
	return pick("secret", name, object.Data, items, optional, fallback)
}

func downwardFiles(pod *corev1.Pod, source Source, items []corev1.DownwardAPIVolumeFile, fallback *int32) (Files, error) {
	files := Files{}
	for _, item := range items {
		value, err := downwardValue(pod, source, &item)
		if err != nil {
			return nil, fmt.Errorf("downwardAPI file %s: %w", item.Path, err)
		}
		files[item.Path] = File{[]byte(value), mode(item.Mode, fallback)}
	}
	return files, nil
}

func downwardValue(pod *corev1.Pod, source Source, item *corev1.DownwardAPIVolumeFile) (string, error) {
	if item.FieldRef != nil {
		return env.Field(pod, item.FieldRef.FieldPath)
	}
	reference := item.ResourceFieldRef
	if reference == nil {
		return "", fmt.Errorf("neither fieldRef nor resourceFieldRef is set")
	}
	for i := range pod.Spec.Containers {
		if container := &pod.Spec.Containers[i]; container.Name == reference.ContainerName {
			return env.Resource(container, reference.Resource, reference.Divisor, source.Allocatable())
		}
	}
	return "", fmt.Errorf("there is no container %q", reference.ContainerName)
}

func projectedFiles(ctx context.Context, pod *corev1.Pod, source Source, volume *corev1.ProjectedVolumeSource) (Files, error) {
	all := Files{}
	for i := range volume.Sources {
		files, err := projectedPart(ctx, pod, source, &volume.Sources[i], volume.DefaultMode)
		if err != nil {
			return nil, err
		}
		for path, file := range files {
			all[path] = file
		}
	}
	return all, nil
}

func projectedPart(ctx context.Context, pod *corev1.Pod, source Source, part *corev1.VolumeProjection, fallback *int32) (Files, error) {
	switch {
	case part.ConfigMap != nil:
		from := part.ConfigMap
		return configMapFiles(source, pod.Namespace, from.Name, from.Items, from.Optional, fallback)
	case part.Secret != nil:
		from := part.Secret
		return secretFiles(source, pod.Namespace, from.Name, from.Items, from.Optional, fallback)
	case part.DownwardAPI != nil:
		return downwardFiles(pod, source, part.DownwardAPI.Items, fallback)
	case part.ServiceAccountToken != nil:
		from := part.ServiceAccountToken
		seconds := int64(3600)
		if from.ExpirationSeconds != nil {
			seconds = *from.ExpirationSeconds
		}
		token, err := source.Token(ctx, pod, from.Audience, seconds)
		if err != nil {
			return nil, fmt.Errorf("token of service account %q: %w", pod.Spec.ServiceAccountName, err)
		}
		return Files{from.Path: File{[]byte(token), mode(nil, fallback)}}, nil
	}
	return nil, fmt.Errorf("a projected volume has a source that this node does not know")
}

// files are those of a volume that is made from objects; known is false for a volume of another kind.
func files(ctx context.Context, pod *corev1.Pod, source Source, volume *corev1.Volume) (made Files, known bool, err error) {
	switch {
	case volume.ConfigMap != nil:
		from := volume.ConfigMap
		made, err = configMapFiles(source, pod.Namespace, from.Name, from.Items, from.Optional, from.DefaultMode)
	case volume.Secret != nil:
		from := volume.Secret
		made, err = secretFiles(source, pod.Namespace, from.SecretName, from.Items, from.Optional, from.DefaultMode)
	case volume.DownwardAPI != nil:
		made, err = downwardFiles(pod, source, volume.DownwardAPI.Items, volume.DownwardAPI.DefaultMode)
	case volume.Projected != nil:
		made, err = projectedFiles(ctx, pod, source, volume.Projected)
	default:
		return nil, false, nil
	}
	return made, true, err
}

// subPath is a folder or file below a volume; what leads out of the volume is refused.
func subPath(mount *corev1.VolumeMount, environment *env.Environment) (string, error) {
	path := mount.SubPath
	if mount.SubPathExpr != "" {
		path = env.Expand(mount.SubPathExpr, environment.Lookup)
		if strings.Contains(path, "$(") {
			return "", fmt.Errorf("subPathExpr of %s: %q has a variable without a value", mount.MountPath, path)
		}
	}
	return path, nil
}
