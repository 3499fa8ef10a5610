"""mfmd build-host: a host compiled anew."""

from mfmd import progress


def run(arguments):
    import subprocess

    from mfmd.engine import LIBRARY_DIR, HostError
    from mfmd.hosts import build

    sources = LIBRARY_DIR / "csrc"
    try:
        with progress.task(f"compiling {arguments.host}"):
            library = build.compile_host(arguments.host, sources, LIBRARY_DIR)
    except ImportError as error:
        raise HostError(f"{arguments.host} is not installed here ({error}), and its host is compiled against it") from None
    except FileNotFoundError as error:
        raise HostError(
            f"no C++ compiler: {error.filename} cannot be run; install g++ or clang++, or name one in the variable CXX"
        ) from None
    except subprocess.CalledProcessError:
        raise HostError(
            f"{sources}/hosts/{arguments.host}.cpp does not compile against what is installed; the compiler's words are above"
        ) from None
    print(library)
    return {"host": arguments.host, "library": str(library)}
