"""The VPN of vps-1: its certificates, its server, and the command `vpn` of this image."""
