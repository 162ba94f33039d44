#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python part of the tests of deploy/: it reads or renders objects and prints them as JSON.

    tool.py PACKAGES kustomize DIR           renders a kustomization
    tool.py PACKAGES helm CHART RELEASE NAMESPACE < values
                                             lints and renders a chart with values in JSON
    tool.py PACKAGES yaml < text             reads YAML
    tool.py PACKAGES workflow < text         a GitHub workflow, checked against GitHub's schema
    tool.py PACKAGES validate VERSION < [..] validates objects against the schemas of a Kubernetes
                                             version and of the Prometheus operator
"""

import ctypes
import glob
import json
import sys

PACKAGES, COMMAND, *ARGUMENTS = sys.argv[1:]
sys.path.insert(0, PACKAGES)


def documents(text):
    import yaml

    return [document for document in yaml.safe_load_all(text) if document]


def kustomize(directory):
    # This calls the library directly, because the package itself requires a newer Python than many systems have.
    library = ctypes.CDLL(glob.glob(f"{PACKAGES}/pykustomize/_lib/*/libpykustomize.so")[0])
    library.pykustomize_last_error.restype = ctypes.c_char_p
    result = ctypes.c_char_p()
    if library.pykustomize_build(directory.encode(), b"{}", ctypes.byref(result)):
        sys.exit(f"{directory}: {library.pykustomize_last_error().decode()}")
    return documents(result.value.decode())


def helm(chart, release, namespace):
    import helm_python

    values = json.load(sys.stdin)
    report = helm_python.lint(chart, values=values, strict=True)
    # Severity 2 is a warning; 1 is a recommendation to add an icon.
    faults = [message for message in report["messages"] if message["severity"] >= 2]
    if faults or report["errors"]:
        sys.exit(f"{chart}: {faults} {report['errors']}")
    with helm_python.Chart.load(chart) as loaded:
        files = loaded.render(values=values, name=release, namespace=namespace)
    return [
        document
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for document in documents(text)
    ]


def dropped(given, understood, path=""):
    """Yields the fields of an object that its model does not know."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(understood, dict) or key not in understood:
                yield f"{path}/{key}"
            else:
                yield from dropped(value, understood[key], f"{path}/{key}")
    elif isinstance(given, list):
        for number, value in enumerate(given):
            yield from dropped(value, understood[number], f"{path}/{number}")


def validate(version):
    import kubernetes_validate

    faults = []
    for given in json.load(sys.stdin):
        name = f"{given.get('kind')} {given.get('metadata', {}).get('name')}"
        try:
            if given.get("apiVersion") == "monitoring.coreos.com/v1":
                import cloudcoil.models.prometheus_operator.v1 as operator

                model = getattr(operator, given["kind"]).model_validate(given)
                understood = model.model_dump(by_alias=True, exclude_unset=True)
                unknown = list(dropped(given, understood))
                if unknown:
                    raise ValueError(f"unknown fields: {', '.join(unknown)}")
            else:
                kubernetes_validate.validate(given, version, strict=True)
        except Exception as error:  # every exception of the validators is a finding
            faults.append(f"{name}: {getattr(error, 'message', error)}")
    return faults


def workflow():
    import jsonschema

    (found,) = documents(sys.stdin.read())
    # YAML 1.1 parses the key `on` as a boolean.
    found["on"] = found.pop(True)
    with open(f"{PACKAGES}/check_jsonschema/builtin_schemas/vendor/github-workflows.json") as file:
        schema = json.load(file)
    validator = jsonschema.validators.validator_for(schema)(schema)
    faults = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]
    if faults:
        sys.exit("\n".join(faults))
    return [found]


COMMANDS = {
    "kustomize": kustomize,
    "helm": helm,
    "yaml": lambda: documents(sys.stdin.read()),
    "validate": validate,
    "workflow": workflow,
}
json.dump(COMMANDS[COMMAND](*ARGUMENTS), sys.stdout)
