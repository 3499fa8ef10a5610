"""torchmd-net 3.1.0's TensorNet, an independent implementation, given our weights."""

import torch


def state_for_peer(backbone):
    """Our backbone's state under torchmd-net's names."""
    s = dict(backbone.state_dict())
    channels = s["embedding.pair.bias"].shape[0]
    out = {"distance_expansion.means": s["radial.means"], "distance_expansion.betas": s["radial.betas"]}
    for k in range(3):
        for kind in ("weight", "bias"):
            out[f"tensor_embedding.distance_proj{k + 1}.{kind}"] = s[f"embedding.radial.{kind}"][k * channels : (k + 1) * channels]
        out[f"tensor_embedding.linears_tensor.{k}.weight"] = s["embedding.mixing"][k]
    for kind in ("weight", "bias"):
        out[f"tensor_embedding.emb2.{kind}"] = s[f"embedding.pair.{kind}"]
        out[f"tensor_embedding.init_norm.{kind}"] = s[f"embedding.norm.{kind}"]
        out[f"linear.{kind}"] = s[f"readout.linear.{kind}"]
        out[f"out_norm.{kind}"] = s[f"readout.norm.{kind}"]
        for k in range(2):
            out[f"tensor_embedding.linears_scalar.{k}.{kind}"] = s[f"embedding.gate.{k}.{kind}"]
    out["tensor_embedding.emb.weight"] = s["embedding.elements.weight"]
    for n in range(len(backbone.layers)):
        for k in range(3):
            for kind in ("weight", "bias"):
                out[f"layers.{n}.linears_scalar.{k}.{kind}"] = s[f"layers.{n}.radial.{k}.{kind}"]
            out[f"layers.{n}.linears_tensor.{k}.weight"] = s[f"layers.{n}.mixing_in"][k]
            out[f"layers.{n}.linears_tensor.{3 + k}.weight"] = s[f"layers.{n}.mixing_out"][k]
    return out


def peer_of(backbone):
    """A torchmd-net TensorNet in double that must compute what `backbone` computes."""
    import torchmdnet.models.tensornet as module

    # Its Warp kernels carry 1/3 in single precision (1e-8 off in double); its own torch path does not.
    module.OPT = False
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(module, name, getattr(module, f"_{name}"))
    channels = backbone.embedding.pair.bias.shape[0]
    peer = module.TensorNet(
        hidden_channels=channels,
        num_layers=len(backbone.layers),
        num_rbf=len(backbone.radial.means),
        trainable_rbf=False,
        cutoff_lower=0.0,
        cutoff_upper=backbone.radial.cutoff,
        max_z=backbone.embedding.elements.num_embeddings,
        static_shapes=False,
        max_num_neighbors=128,
        dtype=torch.float64,
    ).double()
    missing, unexpected = peer.load_state_dict(state_for_peer(backbone), strict=False)
    assert set(missing) <= {"distance.box"} and not unexpected, (missing, unexpected)
    return peer
