"""Which IP addresses may be connected to: public unicast addresses. Pure.

Refused are multicast and the entries of the IANA registries that are not globally reachable:
  https://www.iana.org/assignments/iana-ipv4-special-registry (2024-12)
  https://www.iana.org/assignments/iana-ipv6-special-registry (2024-12)
  https://www.iana.org/assignments/ipv6-address-space: of IPv6 only 2000::/3 is global unicast
and the public addresses at which cloud providers serve metadata and credentials. An IPv6 address that embeds an IPv4 address
must pass both checks.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IPV4_REFUSED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # "this network" [RFC791]
        "10.0.0.0/8",  # private use [RFC1918]
        "100.64.0.0/10",  # shared address space [RFC6598]; 100.100.100.200: Alibaba Cloud's metadata
        "127.0.0.0/8",  # loopback [RFC1122]
        "169.254.0.0/16",  # link local [RFC3927]; 169.254.169.254: metadata of AWS, Google, Azure, Oracle and others
        "172.16.0.0/12",  # private use [RFC1918]
        "192.0.0.0/24",  # IETF protocol assignments [RFC6890]; 192.0.0.192: Oracle Cloud's metadata
        "192.0.2.0/24",  # documentation [RFC5737]
        "192.88.99.0/24",  # deprecated 6to4 relay anycast [RFC7526]
        "192.168.0.0/16",  # private use [RFC1918]
        "198.18.0.0/15",  # benchmarking [RFC2544]
        "198.51.100.0/24",  # documentation [RFC5737]
        "203.0.113.0/24",  # documentation [RFC5737]
        "224.0.0.0/4",  # multicast [RFC5771]
        "240.0.0.0/4",  # reserved [RFC1112] and limited broadcast [RFC8190]
        "168.63.129.16/32",  # Azure's host: DNS, health and the agent's credentials
    )
)

IPV6_REFUSED = tuple(
    IPv6Network(network)
    for network in (
        "::/128",  # unspecified [RFC4291]
        "::1/128",  # loopback [RFC4291]
        "::/96",  # IPv4-compatible, deprecated [RFC4291]
        "::ffff:0:0:0/96",  # IPv4-translated (SIIT) [RFC2765]
        "64:ff9b:1::/48",  # IPv4-IPv6 translation, local use [RFC8215]
        "100::/64",  # discard only [RFC6666]
        "100:0:0:1::/64",  # dummy prefix [RFC9780]
        "2001::/23",  # IETF protocol assignments [RFC2928]: Teredo, benchmarking, AMT, AS112, ORCHID
        "2001:db8::/32",  # documentation [RFC3849]
        "3fff::/20",  # documentation [RFC9637]
        "5f00::/16",  # segment routing SIDs [RFC9602]
        "fc00::/7",  # unique local [RFC4193]; fd00:ec2::254: AWS's metadata, fd20:ce::254: Google's
        "fe80::/10",  # link local [RFC4291]
        "fec0::/10",  # site local, deprecated [RFC3879]
        "ff00::/8",  # multicast [RFC4291]
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # well-known prefix of translators [RFC6052]: global if the embedded address is
_SIX_TO_FOUR = IPv6Network("2002::/16")  # [RFC3056]
_TEREDO = IPv6Network("2001::/32")  # [RFC4380]
_ISATAP = (0x00005EFE, 0x02005EFE)  # third and fourth group of an interface identifier [RFC5214]


def address_allowed(address: str) -> bool:
    """Whether this address may be connected to. False for an invalid address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in IPV4_REFUSED)
    if any(not address_allowed(str(inner)) for inner in embedded(ip)):
        return False
    if ip in _NAT64 or ip.ipv4_mapped is not None:
        return True  # the packets go to the IPv4 address
    return ip in _GLOBAL_UNICAST and not any(ip in network for network in IPV6_REFUSED)


def embedded(ip: IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses embedded in an IPv6 address, in every form that a network stack or a translator may extract."""
    value = int(ip)
    low = IPv4Address(value & 0xFFFFFFFF)
    found = []
    if value >> 32 in (0, 0xFFFF, 0xFFFF << 16) or ip in _NAT64 or (value >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(low)
    if ip in _SIX_TO_FOUR:
        found.append(IPv4Address(value >> 80 & 0xFFFFFFFF))
    if ip in _TEREDO:  # the server, and the client with inverted bits
        found += [IPv4Address(value >> 64 & 0xFFFFFFFF), IPv4Address(~value & 0xFFFFFFFF)]
    return found
