// Package cluster is a node's view of the Kubernetes API.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	resync = 30 * time.Second
	// callDeadline is how long a call to the API may take.
	callDeadline = 10 * time.Second
)

// Cluster is the API with a cache of what the node looks at often.
type Cluster struct {
	Client      kubernetes.Interface
	pods        informers.SharedInformerFactory
	all         informers.SharedInformerFactory
	allocatable corev1.ResourceList

	mu     sync.Mutex
	tokens map[tokenKey]token
}

type tokenKey struct {
	pod      types.UID
	audience string
}

type token struct {
	text  string
	renew time.Time
}

// New has caches that are empty until Start.
func New(client kubernetes.Interface, node string, allocatable corev1.ResourceList) *Cluster {
	return &Cluster{
		Client: client, allocatable: allocatable, tokens: map[tokenKey]token{},
		all: informers.NewSharedInformerFactory(client, resync),
		pods: informers.NewSharedInformerFactoryWithOptions(client, resync, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
			options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
		})),
	}
}

// Handlers are told of changes.
type Handlers struct {
	Pod     func(*corev1.Pod)
	PodGone func(*corev1.Pod)
	// Services is told that services or what is behind them changed.
	Services func()
}

// Start fills the caches and then tells the handlers of everything that is there and changes.
func (c *Cluster) Start(ctx context.Context, handlers Handlers) error {
	core := c.all.Core().V1()
	core.ConfigMaps().Informer()
	core.Secrets().Informer()
	anything := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { handlers.Services() },
		UpdateFunc: func(any, any) { handlers.Services() },
		DeleteFunc: func(any) { handlers.Services() },
	}
	for _, informer := range []cache.SharedIndexInformer{core.Services().Informer(), c.all.Discovery().V1().EndpointSlices().Informer()} {
		if _, err := informer.AddEventHandler(anything); err != nil {
			return err
		}
	}
	c.all.Start(ctx.Done())
	for kind, synced := range c.all.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("list %s: %w", kind, context.Cause(ctx))
		}
	}
	handlers.Services()
	_, err := c.pods.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { handlers.Pod(object.(*corev1.Pod)) },
		UpdateFunc: func(old, object any) { replaced(old.(*corev1.Pod), object.(*corev1.Pod), handlers) },
		DeleteFunc: func(object any) {
			if last, missed := object.(cache.DeletedFinalStateUnknown); missed {
				object = last.Obj
			}
			if pod, known := object.(*corev1.Pod); known {
				handlers.PodGone(pod)
			}
		},
	})
	if err != nil {
		return err
	}
	c.pods.Start(ctx.Done())
	return nil
}

// replaced tells of a pod that was removed and made again between two looks as of two pods.
func replaced(old, pod *corev1.Pod, handlers Handlers) {
	if old.UID != pod.UID {
		handlers.PodGone(old)
	}
	handlers.Pod(pod)
}

// ServicesNow are all services and what is behind them.
func (c *Cluster) ServicesNow() ([]*corev1.Service, []*discoveryv1.EndpointSlice, error) {
	services, err := c.all.Core().V1().Services().Lister().List(labels.Everything())
	if err != nil {
		return nil, nil, err
	}
	slices, err := c.all.Discovery().V1().EndpointSlices().Lister().List(labels.Everything())
	return services, slices, err
}

func call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callDeadline)
}

// ConfigMap is read from the cache, or from the API if it is not there yet.
func (c *Cluster) ConfigMap(namespace, name string) (*corev1.ConfigMap, error) {
	if object, err := c.all.Core().V1().ConfigMaps().Lister().ConfigMaps(namespace).Get(name); err == nil {
		return object, nil
	}
	ctx, cancel := call()
	defer cancel()
	return c.Client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Secret is read from the cache, or from the API if it is not there yet.
func (c *Cluster) Secret(namespace, name string) (*corev1.Secret, error) {
	if object, err := c.all.Core().V1().Secrets().Lister().Secrets(namespace).Get(name); err == nil {
		return object, nil
	}
	ctx, cancel := call()
	defer cancel()
	return c.Client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Services are those of a namespace.
func (c *Cluster) Services(namespace string) ([]*corev1.Service, error) {
	return c.all.Core().V1().Services().Lister().Services(namespace).List(labels.Everything())
}

// Claim is read from the API: pods look at it once.
func (c *Cluster) Claim(namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	ctx, cancel := call()
	defer cancel()
	return c.Client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Volume is read from the API: pods look at it once.
func (c *Cluster) Volume(name string) (*corev1.PersistentVolume, error) {
	ctx, cancel := call()
	defer cancel()
	return c.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
}

// Allocatable is what the node has for pods.
func (c *Cluster) Allocatable() corev1.ResourceList { return c.allocatable }

// IsNotFound says whether an error is that an object does not exist.
func (c *Cluster) IsNotFound(err error) bool { return apierrors.IsNotFound(err) }

// Token is a service account's token for a pod. One is used for four fifths of its life, as the kubelet does.
func (c *Cluster) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, error) {
	key := tokenKey{pod.UID, audience}
	c.mu.Lock()
	held, found := c.tokens[key]
	c.mu.Unlock()
	if found && time.Now().Before(held.renew) {
		return held.text, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	asked := time.Now()
	made, err := c.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	life := made.Status.ExpirationTimestamp.Sub(asked)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[key] = token{made.Status.Token, asked.Add(life * 4 / 5)}
	return made.Status.Token, nil
}

// ForgetTokens drops those of a pod that is gone.
func (c *Cluster) ForgetTokens(pod *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.tokens {
		if key.pod == pod.UID {
			delete(c.tokens, key)
		}
	}
}

// SetStatus writes what the node says of a pod, and leaves conditions of others.
func (c *Cluster) SetStatus(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus) error {
	patch, err := statusPatch(pod, status)
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) {
		return err
	}
	// A pod that was deleted by force may have a successor of its name, which this status is not for.
	now, lookError := c.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if lookError == nil && now.UID != pod.UID {
		return apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
	}
	return err
}

// statusPatch replaces lists that would be merged, and what is empty now. The UID keeps it from a later pod of the same name.
func statusPatch(pod *corev1.Pod, status *corev1.PodStatus) ([]byte, error) {
	text, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	for _, name := range []string{"reason", "message"} {
		if _, found := fields[name]; !found {
			fields[name] = nil
		}
	}
	for _, name := range []string{"podIPs", "hostIPs"} {
		if list, found := fields[name].([]any); found {
			fields[name] = append(list, map[string]any{"$patch": "replace"})
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": fields})
}

// Remove takes a pod that has ended out of the API.
func (c *Cluster) Remove(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	err := c.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
	if apierrors.IsConflict(err) {
		// One of the same name is there already.
		return nil
	}
	return err
}
