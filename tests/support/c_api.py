"""Runs a SavedModel through TensorFlow's C API, as TensorFlow Serving loads it: without Python's.

`python tests/support/c_api.py JOBS.json` prints a JSON list, an answer for each job. The file holds
{"library": libtensorflow_cc.so.2, "saved_model": folder, "jobs": [{"feeds": {tensor: array},
"fetches": [tensor]}]}; an answer is {tensor: array} or {"error": text}. An array is
{"dtype", "shape", "data"}, the data in base64, of strings a list of them.
"""

import base64
import ctypes
import json
import math
import pathlib
import sys

DTYPES = {"float32": 1, "int32": 3, "uint8": 4, "string": 7, "bool": 10}
NAMES = {number: name for name, number in DTYPES.items()}
STRING_SIZE = 24  # of a TF_TString


class Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Session:
    """A session on the SavedModel in `folder`, under the tag that Serving takes."""

    def __init__(self, library, folder):
        self.tf = ctypes.CDLL(library)
        pointers = ["NewStatus", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel"]
        pointers += ["GraphOperationByName", "AllocateTensor", "TensorData"]
        pointers += ["StringGetDataPointer"]
        for name in pointers:
            self._function(name).restype = ctypes.c_void_p
        for name in ["Message", "Version"]:
            self._function(name).restype = ctypes.c_char_p
        for name in ["TensorByteSize", "StringGetSize"]:
            self._function(name).restype = ctypes.c_size_t
        self._function("Dim").restype = ctypes.c_int64
        self.status = ctypes.c_void_p(self.tf.TF_NewStatus())
        self.graph = ctypes.c_void_p(self.tf.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = ctypes.c_void_p(
            self.tf.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self.tf.TF_NewSessionOptions()),
                None,
                folder.encode(),
                tags,
                1,
                self.graph,
                None,
                self.status,
            )
        )
        self._check()

    def run(self, feeds, fetches):
        """The tensors named in `fetches`, with those in `feeds` given."""
        inputs = (Output * len(feeds))(*map(self._output, feeds))
        given = (ctypes.c_void_p * len(feeds))(*map(self._tensor, feeds.values()))
        outputs = (Output * len(fetches))(*map(self._output, fetches))
        got = (ctypes.c_void_p * len(fetches))()
        sizes = len(feeds), len(fetches)
        self.tf.TF_SessionRun(
            self.session, None, inputs, given, sizes[0], outputs, got, sizes[1],
            None, 0, None, self.status,
        )  # fmt: skip
        self._check()
        arrays = [self._array(ctypes.c_void_p(tensor)) for tensor in got]
        for tensor in [*given, *got]:
            self.tf.TF_DeleteTensor(ctypes.c_void_p(tensor))
        return dict(zip(fetches, arrays, strict=True))

    def _function(self, name):
        return getattr(self.tf, f"TF_{name}")

    def _check(self):
        if self.tf.TF_GetCode(self.status):
            raise RuntimeError(self.tf.TF_Message(self.status).decode())

    def _output(self, name):
        operation, index = name.split(":")
        found = self.tf.TF_GraphOperationByName(self.graph, operation.encode())
        if not found:
            raise RuntimeError(f"no operation {operation}")
        return Output(found, int(index))

    def _tensor(self, array):
        shape, data = array["shape"], array["data"]
        dims = (ctypes.c_int64 * len(shape))(*shape)
        is_string = array["dtype"] == "string"
        content = None if is_string else base64.b64decode(data)
        size = STRING_SIZE * math.prod(shape) if is_string else len(content)
        tensor = self.tf.TF_AllocateTensor(
            DTYPES[array["dtype"]], dims, len(shape), ctypes.c_size_t(size)
        )
        start = self.tf.TF_TensorData(ctypes.c_void_p(tensor))
        if not is_string:
            ctypes.memmove(start, content, size)
            return tensor
        for place, text in enumerate(map(base64.b64decode, data)):
            string = ctypes.c_void_p(start + STRING_SIZE * place)
            self.tf.TF_StringInit(string)
            self.tf.TF_StringCopy(string, text, ctypes.c_size_t(len(text)))
        return tensor

    def _array(self, tensor):
        dtype = NAMES[self.tf.TF_TensorType(tensor)]
        shape = [self.tf.TF_Dim(tensor, axis) for axis in range(self.tf.TF_NumDims(tensor))]
        start = self.tf.TF_TensorData(tensor)
        if dtype == "string":
            places = range(start or 0, (start or 0) + STRING_SIZE * math.prod(shape), STRING_SIZE)
            return {"dtype": dtype, "shape": shape, "data": [*map(self._text, places)]}
        content = ctypes.string_at(start, self.tf.TF_TensorByteSize(tensor)) if start else b""
        return {"dtype": dtype, "shape": shape, "data": base64.b64encode(content).decode()}

    def _text(self, place):
        string = ctypes.c_void_p(place)
        start = self.tf.TF_StringGetDataPointer(string)
        text = ctypes.string_at(start, self.tf.TF_StringGetSize(string))
        return base64.b64encode(text).decode()


def main(path):
    request = json.loads(pathlib.Path(path).read_text())
    session = Session(request["library"], request["saved_model"])
    answers = []
    for job in request["jobs"]:
        try:
            answers.append(session.run(**job))
        except RuntimeError as error:
            answers.append({"error": str(error)})
    assert "tensorflow" not in sys.modules
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
