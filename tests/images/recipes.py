"""What the test images are made of, as data.

A layer is made of Debian packages (with everything they depend on, less what lower layers hold and less `without`),
links and files. An image is a list of layers, lowest first, and the config a container starts with.
"""

# What a container never reads: documentation, translations, and what only package management needs.
STRIP = [
    r"usr/share/(doc|doc-base|man|info|locale|lintian|bug|bash-completion|zsh|perl5|gcc|apport|initramfs-tools)/",
    r"usr/lib/[^/]+/gconv/",
    r"usr/lib/[^/]+/(audit|engines-3|ossl-modules|perl-base|sasl2)/",
    r"usr/share/(debconf|pixmaps|vim|polkit-1)/",
    r"usr/lib/(systemd|tmpfiles\.d|sysusers\.d|init)/",
    r"etc/(init\.d|logrotate\.d|ufw|default|systemd|cron\..*|gss|ld\.so\.conf\.d/fakeroot.*)/",
    r"etc/nginx/(sites-.*|snippets|modules-.*|conf\.d)/",
    r"usr/share/nginx/modules-available/",
    r"usr/lib/nginx/modules/",
]

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = """\
root:x:0:
daemon:x:1:
www-data:x:33:
nogroup:x:65534:
"""

NGINX_CONF = """\
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 512; }
http {
    access_log /dev/stdout;
    default_type text/html;
    server {
        listen 80 default_server;
        root /var/www/html;
        index index.html;
    }
}
"""

LAYERS = {
    # A userland in one static binary, in the merged-/usr layout that Debian's packages expect.
    "base": {
        "debs": ["busybox-static"],
        "busybox": "usr/bin/busybox",
        "links": {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run"},
        "dirs": {
            "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755, "sys": 0o555,
            "tmp": 0o1777, "usr/bin": 0o755, "usr/lib": 0o755, "usr/lib64": 0o755, "usr/sbin": 0o755,
            "var/log": 0o755, "var/tmp": 0o1777, "var/www": 0o755,
        },
        "files": {
            "etc/passwd": PASSWD,
            "etc/group": GROUP,
            "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
            "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
        },
    },
    "curl": {"debs": ["curl"]},
    "nginx": {
        "debs": ["nginx-light"],
        "without": [
            "debconf", "iproute2", "libbpf1", "libbsd0", "libcap2", "libcap2-bin", "libdb5.3", "libelf1", "libmd0",
            "libmnl0", "libnginx-mod-http-echo", "libselinux1", "libtirpc-common", "libtirpc3", "libxtables12",
        ],
        "dirs": {"var/lib/nginx": 0o755, "var/log/nginx": 0o755},
        "files": {
            "etc/nginx/nginx.conf": NGINX_CONF,
            "var/www/html/index.html": "<p>WELCOME TO NGINX</p>\n",
        },
    },
    "httpd": {
        "files": {
            "www/index.html": "<html><head><title>Pi armed with containers</title></head>"
            "<body><h1>Hello from a container on a Raspberry Pi</h1></body></html>\n",
        },
    },
    # Two instructions: exit(0). Real programs for machines that this one is not.
    "exit0": {"exit0": "exit0"},
}

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = {"Env": [PATH], "Cmd": ["sh"]}
NGINX = {"Env": [PATH], "Entrypoint": ["nginx"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"}

# Repository -> how it is made. `platforms`: "host" is this machine's; others come as a program that exits.
IMAGES = {
    "library/busybox": {"layers": ["base"], "config": SHELL},
    "bramble/curl": {"layers": ["base", "curl"], "config": SHELL},
    "luxas/nginx-test": {"layers": ["base", "curl", "nginx"], "config": NGINX},
    "bramble/web": {"layers": ["base", "curl", "nginx"], "config": NGINX},
    "hypriot/rpi-nano-httpd": {
        "layers": ["base", "httpd"],
        "config": {
            "Env": [PATH],
            "Entrypoint": ["/usr/bin/busybox"],
            "Cmd": ["httpd", "-f", "-v", "-p", "80", "-h", "/www"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGKILL",
        },
    },
    "bramble/multiarch": {
        "layers": ["base"],
        "config": SHELL,
        "index": ["host", "amd64", "arm64", "arm/v7"],
    },
    # An index without this machine's architecture, and a plain manifest of another one.
    "bramble/arm-only": {"layers": [], "config": {}, "index": ["arm/v7"]},
    "bramble/arm-single": {"layers": [], "config": {}, "single": "arm/v7"},
}
