"""The copy of an environment that an accelerator is added to."""

import json

from env.workspace import Workspace


def test_a_copy_shares_what_is_not_written_to(tmp_path):
    (tmp_path / "real").mkdir()
    root = tmp_path / "root"
    root.symlink_to("real")  # scripts name the path that the set-up was given
    workspace = Workspace(root)
    with workspace.new_environment() as old:
        package = old / "lib" / "python3" / "site-packages" / "tiny"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (old / "lib64").symlink_to("lib")
        (old / "pyvenv.cfg").write_text("home = /usr/bin\n")
        (old / "bin").mkdir()
        (old / "bin" / "python").symlink_to("/usr/bin/python3")
        (old / "bin" / "tool").write_text(f"#!{old}/bin/python\n")
        (old / "bin" / "tool").chmod(0o755)
        workspace.switch(old, {"made": "first"})

    with workspace.new_environment() as new:
        workspace.clone(new)

        copied = new / package.relative_to(old) / "__init__.py"
        assert copied.samefile(package / "__init__.py")
        assert (new / "lib64").readlink().name == "lib"
        assert (new / "bin" / "python").readlink() == (old / "bin" / "python").readlink()
        assert (new / "bin" / "tool").read_text() == f"#!{new}/bin/python\n"
        assert (new / "bin" / "tool").stat().st_mode & 0o777 == 0o755
        assert (old / "bin" / "tool").read_text() == f"#!{old}/bin/python\n"
        assert not (new / "folovllm-environment.json").exists()
        assert json.loads((old / "folovllm-environment.json").read_text()) == {"made": "first"}
        workspace.switch(new, {"made": "second"})

    assert workspace.used == new
    assert workspace.record() == {"made": "second"}
    assert not old.exists()
    assert copied.exists()


def test_apart_is_apart(tmp_path):
    main, apart = Workspace(tmp_path), Workspace(tmp_path, "auto-gptq")
    with main.new_environment() as place:
        (place / "bin").mkdir()
        main.switch(place, {})
    with apart.new_environment() as place:
        (place / "bin").mkdir()
        apart.switch(place, {})

    assert apart.link == tmp_path / ".venvs" / "auto-gptq"
    assert apart.link.resolve() == place
    apart.check_link()
    apart.remove()
    assert not apart.link.is_symlink()
    assert not place.exists()
    assert main.record() == {}
