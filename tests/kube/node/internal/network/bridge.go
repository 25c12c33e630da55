// Package network connects pods: a bridge that all nodes of a host share, names, and the addresses of services.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Bridge is a node's part of the network: a /24 of its own. Its first address is the node's, and stands on the bridge for as
// long as the node runs, so no other node takes the same part.
type Bridge struct {
	link    netlink.Link
	network netip.Prefix
	block   int
	mu      sync.Mutex
	used    map[byte]bool
	last    byte
}

// OpenBridge makes the bridge if it is not there, and takes a part of the network: the one that it had, if that is free or its own.
func OpenBridge(name string, network netip.Prefix, had int) (*Bridge, error) {
	if !network.Addr().Is4() || network.Bits() != 16 {
		return nil, fmt.Errorf("--network %s is not an IPv4 network of 16 bits, such as 10.244.0.0/16", network)
	}
	link, err := ensureBridge(name)
	if err != nil {
		return nil, err
	}
	b := &Bridge{link: link, network: network.Masked(), used: map[byte]bool{}, last: 1}
	if had > 0 {
		b.block = had
		// Left over by a run that was killed.
		if err := netlink.AddrDel(link, b.own()); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("free the address %s: %w", b.Address(), err)
		}
		b.removeLinks()
	}
	return b, b.take(had)
}

func ensureBridge(name string) (netlink.Link, error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make the bridge %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find the bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("--bridge %s: there is a link of that name that is no bridge", name)
	}
	return link, netlink.LinkSetUp(link)
}

// lead has the host find all pods by the bridge.
func (b *Bridge) lead() error {
	whole := &net.IPNet{IP: b.network.Addr().AsSlice(), Mask: net.CIDRMask(b.network.Bits(), 32)}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: b.link.Attrs().Index, Dst: whole, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("set the route to %s: %w", b.network, err)
	}
	return nil
}

func (b *Bridge) take(first int) error {
	for i := range 255 {
		b.block = (max(first, 1)+i-1)%255 + 1
		err := netlink.AddrAdd(b.link, b.own())
		if err == nil {
			return b.lead()
		}
		if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("take the address %s: %w", b.Address(), err)
		}
	}
	return fmt.Errorf("every part of the network %s is taken: there are 255", b.network)
}

// Block is the number of the node's part.
func (b *Bridge) Block() int { return b.block }

func (b *Bridge) address(last byte) netip.Addr {
	four := b.network.Addr().As4()
	four[2], four[3] = byte(b.block), last
	return netip.AddrFrom4(four)
}

// Address is the node's own.
func (b *Bridge) Address() netip.Addr { return b.address(1) }

// PodNetwork is the node's part.
func (b *Bridge) PodNetwork() netip.Prefix { return netip.PrefixFrom(b.address(0), 24) }

func withMask(address netip.Addr, bits int) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, 32)}}
}

// own is the node's address alone: of several in one network, all would go with the first.
func (b *Bridge) own() *netlink.Addr { return withMask(b.Address(), 32) }

// Take gives out an address for a pod: not one that another had a moment ago, if there are others.
func (b *Bridge) Take() (netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range 253 {
		b.last++
		if b.last < 2 || b.last > 254 {
			b.last = 2
		}
		if !b.used[b.last] {
			b.used[b.last] = true
			return b.address(b.last), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("every address of %s is taken", b.PodNetwork())
}

// Free takes an address back.
func (b *Bridge) Free(address netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.used, address.As4()[3])
}

// linkPrefix begins the names of the node's links: another bridge of this host may have the same parts.
func (b *Bridge) linkPrefix() string { return fmt.Sprintf("kn%d.%dp", b.link.Attrs().Index, b.block) }

// Connect gives a sandbox the address, and a way to the bridge.
func (b *Bridge) Connect(sandbox int, address netip.Addr) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: b.linkPrefix() + fmt.Sprint(address.As4()[3]), MasterIndex: b.link.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsPid(sandbox),
	}
	if old, err := netlink.LinkByName(veth.Name); err == nil {
		// The kernel takes the links of an ended sandbox away a moment later.
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("remove the link %s: %w", veth.Name, err)
		}
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link %s: %w", veth.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring the link %s up: %w", veth.Name, err)
	}
	return b.configure(sandbox, address)
}

func (b *Bridge) configure(sandbox int, address netip.Addr) error {
	handle, err := netns.GetFromPid(sandbox)
	if err != nil {
		return fmt.Errorf("open the sandbox's network: %w", err)
	}
	defer handle.Close()
	in, err := netlink.NewHandleAt(handle)
	if err != nil {
		return fmt.Errorf("open the sandbox's network: %w", err)
	}
	defer in.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := in.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s in the sandbox: %w", name, err)
		}
		if name == "eth0" {
			if err := in.AddrAdd(link, withMask(address, b.network.Bits())); err != nil {
				return fmt.Errorf("set the address %s: %w", address, err)
			}
		}
		if err := in.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up in the sandbox: %w", name, err)
		}
	}
	if err := in.RouteAdd(&netlink.Route{Gw: b.Address().AsSlice()}); err != nil {
		return fmt.Errorf("set the route out: %w", err)
	}
	return nil
}

func (b *Bridge) removeLinks() {
	links, err := netlink.LinkList()
	if err != nil {
		return
	}
	for _, link := range links {
		if link.Type() == "veth" && strings.HasPrefix(link.Attrs().Name, b.linkPrefix()) {
			netlink.LinkDel(link)
		}
	}
}

// Close gives the node's part back, and takes the bridge away if no other node has one.
func (b *Bridge) Close() error {
	b.removeLinks()
	if err := netlink.AddrDel(b.link, b.own()); err != nil {
		return fmt.Errorf("free the address %s: %w", b.Address(), err)
	}
	rest, err := netlink.AddrList(b.link, netlink.FAMILY_V4)
	if err != nil || len(rest) > 0 {
		return err
	}
	if err := netlink.LinkDel(b.link); err != nil {
		return fmt.Errorf("remove the bridge: %w", err)
	}
	return nil
}
