"""The services that ours is compared with: obvious implementations, each about a page. PACKAGE names the folder of the package."""
